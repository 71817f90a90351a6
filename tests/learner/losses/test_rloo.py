"""RLOO's loss: by hand, and its expectation over every possible group against the gradient it must estimate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from common.config import Learner as LearnerConfig
from common.config.losses import Rloo
from common.data.images import ImageStore
from common.records import Dropped, PreferencePair, Response
from learner.batch.collate import Collator, RowBatch
from learner.forward.logps import CompletionLogps
from learner.learner import Learner
from learner.losses import pair_losses
from learner.losses.objective import Objective
from learner.losses.pair_logps import PairLogps
from reward.rloo import leave_one_out
from tests.learner.helpers import make_pairs, run_config

RLOO = Rloo(beta=0.4)


def pairs_of(policy: Tensor, reference: Tensor, advantages: Tensor) -> PairLogps:
    """Columns: chosen, rejected."""
    lengths = torch.ones(len(policy))
    return PairLogps(
        *policy.unbind(1), *reference.unbind(1), lengths, lengths, advantages=advantages
    )


def test_the_loss_by_hand() -> None:
    """Advantages 2 and -1, logps -3 and -8, ratios 2 and -2: -½(2·-3 + -1·-8) + ¼·0.4·4² = -1 + 1.6 = 0.6."""
    rows = pairs_of(
        torch.tensor([[-3.0, -8.0]]),
        torch.tensor([[-5.0, -6.0]]),
        torch.tensor([[2.0, -1.0]]),
    )
    assert pair_losses(rows, RLOO).item() == pytest.approx(0.6)


def test_its_gradient_is_the_policy_gradient_with_the_partners_kl_as_baseline() -> None:
    """-½ Σ (A_i - β(kl_i - kl_partner)) ∇logp_i, and gradcheck."""
    torch.manual_seed(0)
    policy = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(5, 2, dtype=torch.float64)
    advantages = torch.randn(5, 2, dtype=torch.float64)

    def loss(logps: Tensor) -> Tensor:
        return pair_losses(pairs_of(logps, reference, advantages), RLOO)

    assert torch.autograd.gradcheck(loss, policy)
    (gradient,) = torch.autograd.grad(loss(policy).sum(), policy)
    kl = (policy - reference).detach()
    expected = -0.5 * (advantages - 0.4 * (kl - kl.flip(1)))
    torch.testing.assert_close(gradient, expected)


def test_unbiased() -> None:
    """k = 4 draws from 3 answers: Σ over all 81 groups of p(group)·∇loss = ∇(-E[score] + β KL(policy || reference))."""
    theta = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-0.2, 0.4, 0.0], dtype=torch.float64).log_softmax(0)
    scores = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
    logps = theta.log_softmax(0)
    expected_loss = torch.zeros((), dtype=torch.float64)
    for group in itertools.product(range(3), repeat=4):
        index = torch.tensor(group).view(2, 2)
        group_scores = scores[list(group)].tolist()
        advantages = torch.tensor(leave_one_out(group_scores), dtype=torch.float64)
        pairs = pairs_of(logps[index], reference[index], advantages.view(2, 2))
        probability = logps[list(group)].sum().exp().detach()
        expected_loss = expected_loss + probability * pair_losses(pairs, RLOO).mean()
    (gradient,) = torch.autograd.grad(expected_loss, theta, retain_graph=True)
    policy = logps.exp()
    target = -(policy * scores).sum() + 0.4 * (policy * (logps - reference)).sum()
    (wanted,) = torch.autograd.grad(target, theta)
    torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=1e-9)


def sampled(store: ImageStore) -> list[PreferencePair]:
    """Two records of one group: advantages 1, -1 and 3, -3; then a pair with another source's scores."""
    first, second, other = make_pairs(store, 3)
    rows = [
        replace(first, source="rloo", scores=(1.0, -1.0)),
        replace(second, source="rloo", scores=(3.0, -3.0)),
    ]
    return [*rows, replace(other, source="bdhs", scores=(100.0, -100.0))]


def test_advantages_are_scaled_by_the_batch(store: ImageStore) -> None:
    """RMS of 1, 1, 3, 3 is sqrt(5); the pair of another loss neither counts nor gets any."""
    config = LearnerConfig.model_validate({"source_losses": {"rloo": {"kind": "rloo"}}})
    pairs = sampled(store)
    scale = math.sqrt(5)
    objective = Objective.of(config, pairs)
    assert objective.advantages(pairs) == [
        (1 / scale, -1 / scale),
        (3 / scale, -3 / scale),
        (0, 0),
    ]
    assert objective.advantages(pairs[2:]) is None
    plain = LearnerConfig.model_validate(
        {"source_losses": {"rloo": {"kind": "rloo", "normalise": False}}}
    )
    assert Objective.of(plain, pairs).advantages(pairs)[0] == (1, -1)  # type: ignore[index]
    level = [replace(pairs[0], scores=(0.0, 0.0))]
    assert Objective.of(config, level).advantages(level) == [(0, 0)]


def test_equal_answers_and_answers_that_end_at_once_are_trained_on(
    collator: Collator,
    store: ImageStore,
) -> None:
    (pair,) = make_pairs(store, 1)
    ended = Response("", (collator.encoder.eos_token_id,))
    rows = [
        replace(pair, rejected=pair.chosen),
        replace(pair, rejected=ended),
        replace(pair, rejected=Response("", ())),
    ]
    sampled_rows = [replace(row, source="rloo") for row in rows]
    results = [collator.encode(row) for row in sampled_rows]
    reasons = [getattr(result, "reason", None) for result in results]
    assert reasons == [None, None, "response_empty"]
    assert all(isinstance(collator.encode(row), Dropped) for row in rows)


def test_training_moves_towards_what_scored_well(store: ImageStore) -> None:
    """Both sides of a record may be above or below the mean: here the first record's are, the second's are not."""
    trainer = Learner(run_config(loss={"kind": "rloo", "beta": 0.01}))
    trainer.start()
    first, second = make_pairs(store, 2)
    rows = [
        replace(first, source="rloo", scores=(2.0, 1.0)),
        replace(second, source="rloo", scores=(-1.0, -2.0)),
    ]
    results = [trainer.step(step, rows)[0].metrics for step in range(4)]
    for side in sides_of(trainer, rows[0]):
        assert logp(trainer.policy, side) > logp(trainer.reference, side)
    for side in sides_of(trainer, rows[1]):
        assert logp(trainer.policy, side) < logp(trainer.reference, side)
    assert results[0]["pairs/rloo"] == 2


def sides_of(trainer: Learner, pair: PreferencePair) -> list[RowBatch]:
    """A row for each side."""
    collator = trainer.models.collator
    rows = []
    for side in (pair.chosen, pair.rejected):
        tokens = collator.encoder.encode_response(side.text)
        rows.append(collator.single(pair.prompt, tokens))
    return rows


def logp(model: Callable[[RowBatch], CompletionLogps], row: RowBatch) -> float:
    return model(row).summed.item()
