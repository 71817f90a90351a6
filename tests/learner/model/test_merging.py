"""How much of an update the rounding of merged weights leaves."""

from __future__ import annotations

import pytest
import torch

from learner.model.merging import Survival, merged_weight


def share_of(weight: torch.Tensor, update: torch.Tensor) -> float | None:
    survival = Survival()
    merged = (weight.float() + update).to(weight.dtype)
    survival.add(weight, update, merged)
    return survival.share


def test_by_hand_in_bfloat16() -> None:
    """At 1 the spacing is 1/128. 1 + 1/256 - e rounds to 1, 1 + 1/100 to 1 + 1/128, 1 + 1/64 is exact.

    (0 + 1/128 · 1/100 + 1/64 · 1/64) / (u² + 1/100² + 1/64²) with u = 1/300.
    """
    weight = torch.ones(3, dtype=torch.bfloat16)
    update = torch.tensor([1 / 300, 1 / 100, 1 / 64])
    expected = (1 / 12800 + 1 / 4096) / (1 / 90000 + 1 / 10000 + 1 / 4096)
    assert share_of(weight, update) == pytest.approx(expected)


def test_a_young_update_is_lost_and_a_large_one_is_not() -> None:
    """What 20 steps at lr 1e-6 move, beside weights of 0.02; and a thousand times that."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(512, 512, generator=generator)
    update = 2e-5 * torch.randn(512, 512, generator=generator)
    rounded = weight.bfloat16()
    young = share_of(rounded, update)
    old = share_of(rounded, 1000 * update)
    assert young is not None
    assert old is not None
    # Small weights, whose spacing is small, take it; the bulk does not.
    assert 0.01 < young < 0.6
    assert old == pytest.approx(1, abs=1e-3)
    assert share_of(weight, update) == pytest.approx(1, abs=1e-3)


def test_rounding_is_fair_where_weights_are_on_no_grid() -> None:
    """A float32 base: round(W + ΔW) is W + ΔW but for a millionth."""
    assert share_of(torch.zeros(4), torch.ones(4)) == 1


def test_without_an_update_there_is_no_share() -> None:
    assert Survival().share is None
    weight = torch.ones(2, 2, dtype=torch.bfloat16)
    assert share_of(weight, torch.zeros(2, 2)) is None


def test_merged_weight_is_rounded_once_and_told() -> None:
    """W + 2·B·A of ones: each element grows by 2·r = 6, and float32 has all of it."""
    survival = Survival()
    weight = torch.full((2, 4), 0.5)
    merged = merged_weight(weight, torch.ones(3, 4), torch.ones(2, 3), 2.0, survival)
    assert torch.equal(merged, torch.full((2, 4), 6.5))
    assert survival.share == 1
    assert torch.equal(weight, torch.full((2, 4), 0.5))
