"""Packed, shared and fused forwards train as plain ones do; what cannot be fast is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import learner.forward.onednn
from common.config import Model, RunConfig
from common.data.images import ImageStore
from learner.forward.tree import tree_batch
from learner.learner import Learner
from learner.model.fast_path import FastPath
from learner.model.policy import load_policy
from tests.learner.helpers import (
    TUNINGS,
    make_pairs,
    run_config,
    started,
    train,
    with_model,
)


def assert_trains_alike(
    actual: dict[str, float],
    expected: dict[str, float],
) -> None:
    """Of the metrics of a step on the same pairs."""
    for name in ("loss", "grad_norm", "rewards/margins", "tokens"):
        assert actual[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-4), name


def test_a_token_limit_cuts_micro_batches_and_changes_nothing(
    store: ImageStore,
) -> None:
    pairs = make_pairs(store, 6)
    plain = started(run_config())
    packed = started(run_config(fast={"pack_tokens": 200}))
    sizes = [len(batch.pairs) for batch in packed.plan(pairs).micro_batches]
    assert len(sizes) > 2
    assert sum(sizes) == 6
    (expected,) = train(plain, [pairs])
    (actual,) = train(packed, [pairs])
    assert_trains_alike(actual, expected)


def test_pairs_of_one_prompt_fill_a_forward_with_it_once(store: ImageStore) -> None:
    pairs = make_pairs(store, 6)
    same_prompt = [replace(pair, prompt=pairs[0].prompt) for pair in pairs]
    plain = started(run_config())
    packed = started(run_config(fast={"pack_tokens": 200}))
    batches = packed.plan(same_prompt).micro_batches
    assert len(batches) < len(packed.plan(pairs).micro_batches)
    for batch in batches:
        assert tree_batch(batch.pairs).num_tokens <= 200
    (expected,) = train(plain, [same_prompt])
    (actual,) = train(packed, [same_prompt])
    assert_trains_alike(actual, expected)


def test_rows_without_trees_count_their_prompt_each_time(store: ImageStore) -> None:
    pairs = make_pairs(store, 6)
    same_prompt = [replace(pair, prompt=pairs[0].prompt) for pair in pairs]
    trees = started(run_config(fast={"pack_tokens": 200}))
    rows = started(run_config(fast={"pack_tokens": 200, "share_prompt": False}))
    num_batches = len(trees.plan(pairs).micro_batches)
    assert len(rows.plan(same_prompt).micro_batches) == num_batches


@TUNINGS
def test_every_switch_off_trains_the_same(
    store: ImageStore,
    tuning: dict | None,
) -> None:
    names = ("share_prompt", "share_vision", "fused_logps", "fused_layers", "onednn")
    off = dict.fromkeys(names, False) | {"reference_cache": "off"}
    batches = [make_pairs(store, 6, first) for first in (0, 6, 12)]
    fast = train(started(run_config(tuning=tuning)), batches)
    slow = train(started(run_config(tuning=tuning, fast=off)), batches)
    for ours, theirs in zip(fast, slow, strict=True):
        for name in ("loss", "grad_norm", "logps/chosen", "rewards/margins"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-3), name


def fallbacks_of(config: RunConfig) -> dict[str, str]:
    fallbacks: dict[str, str] = Learner(config).start()["fallbacks"]
    return fallbacks


def test_what_cannot_be_fast_is_said() -> None:
    """A trained tower has nothing to share; without shared prompts, the reference cache has no keys."""
    assert fallbacks_of(run_config()) == {}
    thawed = with_model(run_config(), freeze_vision=False)
    assert set(fallbacks_of(thawed)) == {"share_vision"}
    rows = run_config(fast={"share_prompt": False, "fused_layers": True})
    assert fallbacks_of(rows) == {
        "share_vision": "needs share_prompt",
        "fused_layers": "needs share_prompt",
        "reference_cache": "needs share_prompt",
    }


def test_what_zero_3_cannot_have_is_said(model_path: Path) -> None:
    """The reference cache is there on one rank."""
    policy = load_policy(Model(), model_path)
    on_one = run_config("deepspeed", zero_stage=3, num_ranks=1)
    on_two = run_config("deepspeed", zero_stage=3, num_ranks=2)
    without = {"share_vision", "fused_logps"}
    assert set(FastPath.of(on_one, policy).fallbacks) == without
    assert set(FastPath.of(on_two, policy).fallbacks) == {*without, "reference_cache"}


def test_the_slower_of_two_libraries_is_no_fallback(
    model_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learner.forward.onednn, "mkl_is_slow", lambda: False)
    path = FastPath.of(run_config(), load_policy(Model(), model_path))
    assert (path.onednn, path.fallbacks) == (False, {})
