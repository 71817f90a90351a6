"""Dense DPO: which tokens are changed, and the loss of a real model against a plain loop over its tokens."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import Learner as LearnerConfig
from common.config.losses import Ddpo
from common.data.images import ImageStore
from common.records import Response
from learner.batch.collate import Collator, EncodedPair
from learner.batch.plan import MicroSize, plan_batch
from learner.forward.tree_logps import prepare
from learner.losses.changed_tokens import changed_token_mask, changed_tokens
from learner.losses.objective import Objective
from learner.model.policy import Policy
from learner.update import accumulate
from tests.learner.helpers import (
    assert_same_gradients,
    diverged_policies,
    encoded,
    gradients,
    log_softmax_of,
    losses_of,
    make_pairs,
    models_of,
    offline,
    run_config,
    started,
    train,
    without_image,
)


def spots(
    chosen: list[int],
    rejected: list[int],
    min_match: int = 1,
) -> tuple[list[int], list[int]]:
    """Places of changed tokens."""
    in_chosen, in_rejected = changed_tokens(chosen, rejected, min_match)
    return places(in_chosen), places(in_rejected)


def places(changed: list[bool]) -> list[int]:
    return [place for place, is_changed in enumerate(changed) if is_changed]


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        pytest.param([1, 2, 3, 4], [1, 9, 3, 4], ([1], [1]), id="another token"),
        pytest.param([1, 2, 3], [1, 2, 7, 8, 3], ([], [2, 3]), id="only in rejected"),
        pytest.param([1, 2, 3], [1, 3], ([1], []), id="only in chosen"),
        pytest.param([1, 2], [3], ([0, 1], [0]), id="nothing in common"),
        pytest.param([1, 2, 3], [1, 2, 3], ([], []), id="equal"),
    ],
)
def test_by_hand(
    chosen: list[int],
    rejected: list[int],
    expected: tuple[list[int], list[int]],
) -> None:
    assert spots(chosen, rejected) == expected


def test_short_runs_between_changes_are_changed() -> None:
    """1 2 3 is common and 3 long, 5 is common and 1 long."""
    chosen, rejected = [1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 5, 8]
    assert spots(chosen, rejected, 1) == ([3, 5], [3, 5])
    assert spots(chosen, rejected, 2) == ([3, 4, 5], [3, 4, 5])
    assert spots(chosen, rejected, 4) == (list(range(6)), list(range(6)))


def test_what_is_unchanged_is_common() -> None:
    """Whatever the answers are, their unchanged tokens read the same; frequent tokens of long answers too."""
    rng = random.Random(0)
    for _ in range(30):
        chosen = rng.choices(range(6), k=rng.randint(1, 400))
        rejected = rng.choices(range(6), k=rng.randint(1, 400))
        in_chosen, in_rejected = changed_tokens(chosen, rejected, rng.randint(1, 4))
        assert unchanged(chosen, in_chosen) == unchanged(rejected, in_rejected)


def unchanged(answer: list[int], changed: list[bool]) -> list[int]:
    pairs = zip(answer, changed, strict=True)
    return [token for token, is_changed in pairs if not is_changed]


def test_mask(collator: Collator, store: ImageStore) -> None:
    record = replace(
        make_pairs(store, 1)[0], chosen=tokens(5, 6, 7), rejected=tokens(5, 8, 7, 9)
    )
    (pair,) = encoded(collator, [record])
    mask = changed_token_mask([pair, pair], [1, None], 5)
    assert mask.int().tolist() == [[0, 1, 0, 0, 0], [0] * 5, [0, 1, 0, 1, 0], [0] * 5]


def tokens(*ids: int) -> Response:
    return Response("", ids)


def dense_ratio(
    policies: tuple[Policy, Policy],
    collator: Collator,
    pair: EncodedPair,
    side: int,
) -> Tensor:
    """Σ w_i r_i / Σ w_i with weight 4 in changed spans, token by token from Hugging Face's own logits."""
    completion = (pair.chosen, pair.rejected)[side]
    changed = changed_tokens(pair.chosen, pair.rejected, 2)[side]
    batch = collator.rows([(pair.prompt, completion)]).to("cpu", torch.float64)
    policy, reference = policies
    # [positions, vocabulary]
    of_policy = log_softmax_of(policy, batch)[0]
    of_reference = log_softmax_of(reference, batch)[0].detach()
    ratios = of_policy - of_reference
    total = torch.zeros((), dtype=torch.float64)
    weights = 0.0
    # The prompt's last token predicts the first of the completion.
    predictor = len(pair.prompt.token_ids) - 1
    for token, is_changed in zip(completion, changed, strict=True):
        weight = 4.0 if is_changed else 1.0
        total = total + weight * ratios[predictor, token]
        weights += weight
        predictor += 1
    return total / weights


def formula(
    policies: tuple[Policy, Policy],
    collator: Collator,
    pair: EncodedPair,
) -> Tensor:
    """The loss of a pair: dense with β = 0.5 for source `bdhs`, DPO with β = 0.1 for all others."""
    if pair.pair.source == "bdhs":
        chosen = dense_ratio(policies, collator, pair, 0)
        rejected = dense_ratio(policies, collator, pair, 1)
        return -F.logsigmoid(0.5 * (chosen - rejected))
    policy, reference = policies
    batch = collator.collate([pair]).to("cpu", torch.float64)
    chosen, rejected = policy(batch).summed - reference(batch).summed
    return -F.logsigmoid(0.1 * (chosen - rejected))


@pytest.mark.parametrize("tree", [True, False], ids=["tree", "rows"])
@pytest.mark.parametrize("size", [1, 3])
def test_gradient_of_the_batch_equals_that_of_the_formula(
    model_path: Path,
    collator: Collator,
    store: ImageStore,
    tree: bool,
    size: int,
) -> None:
    """Dense pairs beside plain ones, one of them without a picture."""
    policies = diverged_policies(model_path, 0.2)
    policy, reference = policies
    dense = {"kind": "ddpo", "beta": 0.5, "gamma": 4, "min_match": 2}
    config = LearnerConfig.model_validate({"source_losses": {"bdhs": dense}})
    records = make_pairs(store, 4)
    records[1] = without_image(records[1])
    losses = [formula(policies, collator, pair) for pair in encoded(collator, records)]
    policy.zero_grad()
    torch.stack(losses).mean().backward()
    expected = gradients(policy)
    if tree:
        prepare(policy.model)
        prepare(reference.model)
    collator.tree = tree
    policy.zero_grad()
    plan = plan_batch(records, collator, MicroSize(size), 0, 1)
    accumulate(models_of(policies, collator), plan, Objective.of(config, records))
    assert_same_gradients(gradients(policy), expected)


def test_a_learner_trains_on_it_with_cached_references(store: ImageStore) -> None:
    """The second look at the same pairs reads per-token values from disk; the same without a cache."""
    batches = [offline(make_pairs(store, 6))] * 4
    curves = []
    for cache in ("run", "off"):
        config = run_config(loss=Ddpo(beta=0.5), fast={"reference_cache": cache})
        trainer = started(config)
        assert trainer.fast.fallbacks == {}
        curves.append(losses_of(train(trainer, batches)))
    cached, uncached = curves
    assert cached == uncached
    # Policy = reference: log 2.
    assert cached[0] == pytest.approx(0.693147, abs=1e-5)
    assert cached[-1] < cached[0]
