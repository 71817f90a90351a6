"""The MLP in one function against its three modules, values and gradients, however its tokens are cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import learner.gated_mlp
from learner.gated_mlp import can_fuse, gated_mlp
from learner.products import install
from tests.learner.families import family

WIDTH, INNER = 6, 10
NAMES = ("gate_proj", "up_proj", "down_proj")


def made() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    sizes = (WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH)
    layers = {
        name: nn.Linear(*size, bias=False).double()
        for name, size in zip(NAMES, sizes, strict=True)
    }
    return SimpleNamespace(**layers), torch.randn(2, 4, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("frozen", [(), NAMES[:1], NAMES[1:], NAMES])
@pytest.mark.parametrize("tokens", [1, 3, 4, 100])
@pytest.mark.parametrize("input_trains", [True, False])
def test_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
    frozen: tuple[str, ...],
    tokens: int,
    input_trains: bool,
) -> None:
    monkeypatch.setattr(learner.gated_mlp, "CACHE_BYTES", 0)
    monkeypatch.setattr(learner.gated_mlp, "MIN_TOKENS", tokens)
    mlp, hidden = made()
    for name in frozen:
        getattr(mlp, name).requires_grad_(False)
    hidden.requires_grad_(input_trains)
    inputs = [
        each
        for each in (hidden, *(layer.weight for layer in vars(mlp).values()))
        if each.requires_grad
    ]
    ours = gated_mlp(mlp, hidden)
    theirs = mlp.down_proj(
        nn.functional.silu(mlp.gate_proj(hidden)) * mlp.up_proj(hidden)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    if inputs:
        slope = torch.linspace(-1, 2, ours.numel(), dtype=torch.float64).view_as(ours)
        found, expected = (
            torch.autograd.grad(each, inputs, slope) for each in (ours, theirs)
        )
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("nothing_is_small")
def test_through_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in float32, in runs of 3 tokens, so that gradients of the weights are added up."""
    monkeypatch.setattr(learner.gated_mlp, "CACHE_BYTES", 0)
    monkeypatch.setattr(learner.gated_mlp, "MIN_TOKENS", 3)
    found = []
    for installed in (True, False):
        mlp, hidden = made_module().float(), made()[1].float().requires_grad_()
        if installed:
            install(mlp)
        output = gated_mlp(mlp, hidden)
        (
            output * torch.linspace(-1, 2, output.numel()).view_as(output)
        ).sum().backward()
        found.append(
            [output, hidden.grad, *(weight.grad for weight in mlp.parameters())]
        )
    torch.testing.assert_close(found[0], found[1])


def test_twice_through_one_graph_and_kept_buffers_stay() -> None:
    """Backward writes into buffers of its own only: a second pass over the same graph finds the same."""
    mlp, hidden = made()
    output = gated_mlp(mlp, hidden.requires_grad_()).sum()
    weight = mlp.down_proj.weight
    first, second = (
        torch.autograd.grad(output, [hidden, weight], retain_graph=True)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_gradient_keeps_nothing() -> None:
    mlp, hidden = made()
    with torch.no_grad():
        assert gated_mlp(mlp, hidden).grad_fn is None


def test_other_mlps_are_left_alone() -> None:
    model = family("llava").model
    mlp = model.model.language_model.layers[0].mlp
    assert can_fuse(mlp)
    adapted = get_peft_model(
        nn.ModuleDict({"mlp": made_module()}),
        LoraConfig(r=2, target_modules=["up_proj"]),
    )
    assert not can_fuse(adapted.base_model.model["mlp"])
    split = made_module()
    split.up_proj.weight.ds_id = 0  # type: ignore[assignment]
    assert not can_fuse(split)


def made_module() -> Any:
    module = nn.Module()
    for name, layer in vars(made()[0]).items():
        setattr(module, name, layer)
    return module
