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
from common.config import Model
from common.images import ImageStore
from common.loss_config import Ddpo
from common.records import PreferencePair, Response
from learner.batching import MicroSize, plan_batch
from learner.changes import changed_token_mask, changed_tokens
from learner.collate import Collator, EncodedPair
from learner.learner import Learner
from learner.objective import Objective
from learner.policy import Policy, freeze_copy, load_policy
from learner.tree_logps import prepare
from learner.update import accumulate
from tests.learner.helpers import make_pairs, models_of, run_config, text_prompt


def spots(
    chosen: list[int], rejected: list[int], min_match: int = 1
) -> tuple[list[int], list[int]]:
    """Places of changed tokens."""
    sides = changed_tokens(chosen, rejected, min_match)
    return tuple(
        [place for place, changed in enumerate(side) if changed] for side in sides
    )  # type: ignore[return-value]


def test_by_hand() -> None:
    assert spots([1, 2, 3, 4], [1, 9, 3, 4]) == ([1], [1])
    assert spots([1, 2, 3], [1, 2, 7, 8, 3]) == ([], [2, 3]), (
        "what is only in one answer"
    )
    assert spots([1, 2, 3], [1, 3]) == ([1], [])
    assert spots([1, 2], [3]) == ([0, 1], [0])
    assert spots([1, 2, 3], [1, 2, 3]) == ([], [])


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
        answers = [rng.choices(range(6), k=rng.randint(1, 400)) for _ in range(2)]
        sides = changed_tokens(*answers, rng.randint(1, 4))
        kept = [
            [token for token, changed in zip(answer, side, strict=True) if not changed]
            for answer, side in zip(answers, sides, strict=True)
        ]
        assert kept[0] == kept[1]


def test_mask(collator: Collator, store: ImageStore) -> None:
    pair = encoded(
        collator,
        [
            replace(
                make_pairs(store, 1)[0],
                chosen=tokens(5, 6, 7),
                rejected=tokens(5, 8, 7, 9),
            )
        ],
    )[0]
    found = changed_token_mask([pair, pair], [1, None], 5)
    assert found.int().tolist() == [[0, 1, 0, 0, 0], [0] * 5, [0, 1, 0, 1, 0], [0] * 5]


def tokens(*ids: int) -> Response:
    return Response("", ids)


def encoded(collator: Collator, pairs: list[PreferencePair]) -> list[EncodedPair]:
    found = [collator.encode(pair) for pair in pairs]
    return [pair for pair in found if isinstance(pair, EncodedPair)]


def dense_ratio(
    policies: tuple[Policy, Policy], collator: Collator, pair: EncodedPair, side: int
) -> Tensor:
    """Σ w_i r_i / Σ w_i with weight 4 in changed spans, token by token from Hugging Face's own logits."""
    completion = (pair.chosen, pair.rejected)[side]
    changed = changed_tokens(pair.chosen, pair.rejected, 2)[side]
    batch = collator.rows([(pair.prompt, completion)]).to("cpu", torch.float64)
    start = len(pair.prompt.token_ids)
    tables = [
        policy.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            **batch.media,
        )
        .logits[0]
        .log_softmax(-1)
        for policy in policies
    ]
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for place, token in enumerate(completion):
        weight = 4.0 if changed[place] else 1.0
        total = (
            total + weight * (tables[0] - tables[1].detach())[start + place - 1, token]
        )
        weights += weight
    return total / weights


@pytest.mark.parametrize("tree", [True, False], ids=["tree", "rows"])
@pytest.mark.parametrize("size", [1, 3])
def test_gradient_of_the_batch_equals_that_of_the_formula(
    model_path: Path, collator: Collator, store: ImageStore, tree: bool, size: int
) -> None:
    """Dense pairs beside plain ones, one of them without a picture."""
    policy = load_policy(Model(), model_path).double()
    reference = freeze_copy(policy, share_tower=True)
    torch.manual_seed(1)
    with torch.no_grad():
        policy.model.lm_head.weight.add_(
            torch.randn_like(policy.model.lm_head.weight) * 0.2
        )
    config = LearnerConfig.model_validate(
        {
            "source_losses": {
                "bdhs": {
                    "kind": "ddpo",
                    "beta": 0.5,
                    "gamma": 4,
                    "min_match": 2,
                }
            }
        }
    )
    records = make_pairs(store, 4)
    records[1] = replace(records[1], prompt=text_prompt())
    pairs = encoded(collator, records)
    losses = []
    for pair in pairs:
        if pair.pair.source == "bdhs":
            ratios = [
                dense_ratio((policy, reference), collator, pair, side)
                for side in range(2)
            ]
            losses.append(-F.logsigmoid(0.5 * (ratios[0] - ratios[1])))
        else:
            batch = collator.collate([pair]).to("cpu", torch.float64)
            delta = (policy(batch).summed - reference(batch).summed).diff()
            losses.append(-F.logsigmoid(-0.1 * delta)[0])
    expected = gradients(policy, torch.stack(losses).mean())
    for each in (policy, reference) if tree else ():
        prepare(each.model)
    collator.tree = tree
    policy.zero_grad()
    plan, objective = (
        plan_batch(records, collator, MicroSize(size), 0, 1),
        Objective.of(config, records),
    )
    accumulate(models_of((policy, reference), collator), plan, objective)
    found = {
        name: p.grad for name, p in policy.named_parameters() if p.grad is not None
    }
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-5 * value.norm() + 1e-9, name


def gradients(policy: Policy, loss: Tensor) -> dict[str, Tensor]:
    policy.zero_grad()
    loss.backward()
    return {
        name: p.grad.clone()
        for name, p in policy.named_parameters()
        if p.grad is not None
    }


def test_a_learner_trains_on_it_with_cached_references(store: ImageStore) -> None:
    """The second look at the same pairs reads per-token values from disk; the same without a cache."""
    pairs = [replace(pair, weight_version=None) for pair in make_pairs(store, 6)]
    results = []
    for cache in ("run", "off"):
        trainer = Learner(
            run_config(loss=Ddpo(beta=0.5), fast={"reference_cache": cache})
        )
        assert trainer.start()["fallbacks"] == {}
        results.append(
            [trainer.step(step, pairs)[0].metrics["loss"] for step in range(4)]
        )
    assert results[0] == results[1]
    assert results[0][0] == pytest.approx(0.693147, abs=1e-5)
    assert results[0][-1] < results[0][0]
