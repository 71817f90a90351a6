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
from tests.learner.helpers import identical, make_pairs, run_config, started, train

RLOO = Rloo(beta=0.4)


def pairs_of(policy: Tensor, reference: Tensor, advantages: Tensor) -> PairLogps:
    """Columns: chosen, rejected."""
    policy_chosen, policy_rejected = policy.unbind(1)
    ref_chosen, ref_rejected = reference.unbind(1)
    lengths = torch.ones(len(policy))
    return PairLogps(
        policy_chosen,
        policy_rejected,
        ref_chosen,
        ref_rejected,
        lengths,
        lengths,
        advantages=advantages,
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
    theta = doubles(0.3, -0.5, 0.1).requires_grad_()
    reference = doubles(-0.2, 0.4, 0.0).log_softmax(0)
    scores = doubles(1.0, -0.5, 0.25)
    logps = theta.log_softmax(0)

    expected_loss = torch.zeros((), dtype=torch.float64)
    for group in itertools.product(range(3), repeat=4):
        answers = list(group)
        advantages = doubles(*leave_one_out(scores[answers].tolist()))
        # Two records of two answers each.
        records = torch.tensor(answers).view(2, 2)
        pairs = pairs_of(logps[records], reference[records], advantages.view(2, 2))
        loss = pair_losses(pairs, RLOO).mean()
        # Detached: the gradient is that of the loss, at the probability of drawing this group.
        probability = logps[answers].sum().exp().detach()
        expected_loss = expected_loss + probability * loss
    (gradient,) = torch.autograd.grad(expected_loss, theta, retain_graph=True)

    policy = logps.exp()
    mean_score = (policy * scores).sum()
    kl = (policy * (logps - reference)).sum()
    target = -mean_score + 0.4 * kl
    (wanted,) = torch.autograd.grad(target, theta)
    torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=1e-9)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sampled(store: ImageStore) -> list[PreferencePair]:
    """Two records of one group: advantages 1, -1 and 3, -3; then a pair with another source's scores."""
    first, second, other = make_pairs(store, 3)
    return [
        scored(first, 1.0, -1.0),
        scored(second, 3.0, -3.0),
        replace(other, source="bdhs", scores=(100.0, -100.0)),
    ]


def scored(pair: PreferencePair, chosen: float, rejected: float) -> PreferencePair:
    """The pair as a record of RLOO with these advantages."""
    return replace(pair, source="rloo", scores=(chosen, rejected))


def objective_of(pairs: list[PreferencePair], normalise: bool = True) -> Objective:
    """With RLOO for its source and DPO for all others."""
    loss = {"kind": "rloo", "normalise": normalise}
    config = LearnerConfig.model_validate({"source_losses": {"rloo": loss}})
    return Objective.of(config, pairs)


def test_advantages_are_scaled_by_the_batch(store: ImageStore) -> None:
    """RMS of 1, 1, 3, 3 is sqrt(5); the pair of another loss neither counts nor gets any."""
    pairs = sampled(store)
    objective = objective_of(pairs)
    scale = math.sqrt(5)
    assert objective.advantages(pairs) == [
        (1 / scale, -1 / scale),
        (3 / scale, -3 / scale),
        (0, 0),
    ]
    *_, of_another_loss = pairs
    assert objective.advantages([of_another_loss]) is None


def test_advantages_may_stay_as_they_are(store: ImageStore) -> None:
    pairs = sampled(store)
    advantages = objective_of(pairs, normalise=False).advantages(pairs)
    assert advantages == [(1, -1), (3, -3), (0, 0)]


def test_advantages_that_are_all_zero_are_not_divided_by_zero(
    store: ImageStore,
) -> None:
    (pair,) = make_pairs(store, 1)
    level = [scored(pair, 0.0, 0.0)]
    assert objective_of(level).advantages(level) == [(0, 0)]


def test_equal_answers_and_answers_that_end_at_once_are_trained_on(
    collator: Collator,
    store: ImageStore,
) -> None:
    (pair,) = make_pairs(store, 1)
    ended = Response("", (collator.encoder.eos_token_id,))
    empty = Response("", ())
    rows = [
        identical(pair),
        replace(pair, rejected=ended),
        replace(pair, rejected=empty),
    ]
    reasons = []
    for row in rows:
        result = collator.encode(replace(row, source="rloo"))
        reasons.append(getattr(result, "reason", None))
        # A preference needs two answers that can be told apart.
        assert isinstance(collator.encode(row), Dropped)
    assert reasons == [None, None, "response_empty"]


def test_training_moves_towards_what_scored_well(store: ImageStore) -> None:
    """Both sides of a record may be above or below the mean: here the first record's are, the second's are not."""
    trainer = started(run_config(loss={"kind": "rloo", "beta": 0.01}))
    first, second = make_pairs(store, 2)
    good = scored(first, 2.0, 1.0)
    bad = scored(second, -1.0, -2.0)
    metrics = train(trainer, [[good, bad]] * 4)
    assert metrics[0]["pairs/rloo"] == 2
    for side in sides_of(trainer, good):
        assert logp(trainer.policy, side) > logp(trainer.reference, side)
    for side in sides_of(trainer, bad):
        assert logp(trainer.policy, side) < logp(trainer.reference, side)


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
