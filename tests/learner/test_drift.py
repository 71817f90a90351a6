"""How far the policy has moved from the reference: values by hand, and against transformers' own log-softmax."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common.chat import ChatEncoder
from common.config import Learner as LearnerConfig
from common.data.images import ImageStore
from common.records import Response
from learner.batch.collate import Collator
from learner.batch.plan import MicroBatch, MicroSize, plan_batch
from learner.drift import drift_of
from learner.forward.logps import CompletionLogps
from learner.forward.tree_logps import prepare
from learner.losses.objective import Objective
from learner.update import accumulate
from tests.learner.helpers import (
    diverged_policies,
    encoded,
    log_softmax_of,
    make_pairs,
    models_of,
    run_config,
    started,
)

STOP = 2


def rows_of(*rows: list[float]) -> CompletionLogps:
    """Token log-probs of rows, padded to the longest."""
    longest = max(map(len, rows))
    table = torch.zeros(len(rows), longest)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        table[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = True
    return CompletionLogps(table, mask)


def sides(chosen: tuple[int, ...], rejected: tuple[int, ...]) -> Any:
    """A pair of these tokens; nothing else of it is read."""
    return SimpleNamespace(chosen=chosen, rejected=rejected)


def test_values_by_hand() -> None:
    """Chosen of pair 0: (-1 + 2, -3 + 4) = 1, 1: mean 1, end 1. Its rejected side, one token of -5 + 2, was cut off.

    Pair 1 ends with -0.5 on the chosen side, (0, 0, -0.5) / 3, and with -2 on the rejected one, (2, -2) / 2.
    """
    policy = rows_of([-1, -3], [-1, -1, -1.5], [-5], [-1, -4])
    reference = rows_of([-2, -4], [-1, -1, -1], [-2], [-3, -2])
    pairs = (sides((7, STOP), (7,)), sides((7, 8, STOP), (9, STOP)))
    columns = drift_of(policy, reference, MicroBatch(pairs), [STOP])
    assert columns == {
        "drift/chosen": pytest.approx([1, -0.5 / 3]),
        "drift/rejected": pytest.approx([-3, 0]),
        "drift/chosen_end": pytest.approx([1, -0.5]),
        "drift/rejected_end": pytest.approx([-2]),
    }


def test_fillers_do_not_count_and_no_end_gives_no_figure() -> None:
    policy = rows_of([-1.0], [-9.0], [-1.0], [-9.0])
    reference = rows_of([-2.0], [-2.0], [-3.0], [-2.0])
    pairs = (sides((7,), (8,)), sides((7, STOP), (8, STOP)))
    columns = drift_of(policy, reference, MicroBatch(pairs, 1), [STOP])
    assert columns == {"drift/chosen": [1.0], "drift/rejected": [2.0]}


def test_without_a_reference_nothing_is_measured() -> None:
    policy = rows_of([-1.0], [-1.0])
    pairs = (sides((STOP,), (STOP,)),)
    assert drift_of(policy, None, MicroBatch(pairs), [STOP]) == {}


@pytest.mark.parametrize("tree", [False, True])
def test_equal_to_log_softmax(model_path: Path, store: ImageStore, tree: bool) -> None:
    """Float64, padded rows and trees, in micro-batches of two with one pair left over."""
    policies = diverged_policies(model_path, 0.05)
    collator = Collator(ChatEncoder(model_path, 256))
    records = make_pairs(store, 5)
    pairs = encoded(collator, records)
    sides_of = {"chosen": [], "rejected": []}
    for pair in pairs:
        for side, values in sides_of.items():
            values.append(token_ratios(policies, collator, pair, side))
    collator.tree = tree
    if tree:
        for policy in policies:
            prepare(policy.model)
    plan = plan_batch(records, collator, MicroSize(2), 0, 1)
    objective = Objective.of(LearnerConfig(), records)
    table = accumulate(models_of(policies, collator), plan, objective)
    for side, values in sides_of.items():
        means = [float(ratios.mean()) for ratios in values]
        ends = [float(ratios[-1]) for ratios in values]
        assert table[f"drift/{side}"] == pytest.approx(means, abs=1e-6)
        assert table[f"drift/{side}_end"] == pytest.approx(ends, abs=1e-6)


@torch.no_grad()
def token_ratios(policies: Any, collator: Collator, pair: Any, side: str) -> Any:
    """logp - logp_ref of every token of a side, [tokens]."""
    completion = getattr(pair, side)
    batch = collator.single(pair.pair.prompt, completion)
    batch = batch.to("cpu", torch.float64)
    first_predictor = len(pair.prompt.token_ids) - 1
    targets = torch.tensor(completion)[:, None]
    logps = []
    for policy in policies:
        table = log_softmax_of(policy, batch)[0, first_predictor:-1]
        logps.append(table.gather(1, targets).squeeze(1))
    of_policy, of_reference = logps
    return of_policy - of_reference


def test_a_step_says_how_long_its_sides_are_and_begins_at_the_reference(
    store: ImageStore,
) -> None:
    trainer = started(run_config())
    encoder = trainer.models.collator.encoder
    short = Response("", encoder.encode_response("no"))
    cut_off = Response("", encoder.encode_response("There is a blue")[:-1])
    pairs = [
        replace(pair, chosen=short, rejected=cut_off) for pair in make_pairs(store, 4)
    ]
    result, _ = trainer.step(0, pairs)
    metrics = result.metrics
    assert metrics["lengths/chosen"] == len(short.token_ids or ())
    assert metrics["lengths/rejected"] == len(cut_off.token_ids or ())
    for name in ("drift/chosen", "drift/rejected", "drift/chosen_end"):
        assert metrics[name] == pytest.approx(0, abs=1e-5)
    # No rejected side ends.
    assert "drift/rejected_end" not in metrics
