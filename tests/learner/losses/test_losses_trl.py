"""Our losses against TRL's own, fed the same log-probs token by token. TRL is needed by this test only."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config.losses import Grpo, Mpo, Robust, Sigmoid, Simpo
from learner.losses import loss_figures, pair_losses, pair_metrics
from learner.losses.pair_logps import PairLogps
from tests.learner.helpers import loss_of_kind

dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer")

PROMPT, RESPONSE = 3, 7


class Batch:
    """Random per-token log-probs of policy and reference for responses of 1 to `RESPONSE` tokens."""

    def __init__(self, num_pairs: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows = 2 * num_pairs
        self.lengths = torch.randint(1, RESPONSE + 1, (rows,), generator=generator)
        place = torch.arange(PROMPT + RESPONSE)
        self.mask = (
            (place >= PROMPT) & (place < PROMPT + self.lengths[:, None])
        ).long()
        shape = (rows, PROMPT + RESPONSE - 1)
        policy = -2 * torch.rand(shape, generator=generator, dtype=torch.float64)
        reference = -2 * torch.rand(shape, generator=generator, dtype=torch.float64)
        self.policy = policy * self.mask[:, 1:]
        self.reference = reference * self.mask[:, 1:]

    @property
    def logps(self) -> PairLogps:
        sides = [
            *self.policy.sum(1).chunk(2),
            *self.reference.sum(1).chunk(2),
            *self.lengths.chunk(2),
        ]
        return PairLogps(*sides)

    def trl(
        self,
        kinds: dict[str, float],
        beta: float,
        label_smoothing: float = 0.0,
    ) -> tuple[float, dict[str, Any]]:
        """The batch's loss and metrics by `DPOTrainer`, with everything but the loss left out."""
        gathered = SimpleNamespace(
            device="cpu", gather=lambda v: v, gather_for_metrics=lambda v: v
        )
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=gathered,
            args=SimpleNamespace(gradient_checkpointing_kwargs=None),
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=list(kinds),
            loss_weights=list(kinds.values()),
            beta=beta,
            label_smoothing=label_smoothing,
            use_weighting=False,
            _metrics={"train": defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
        )
        chosen, rejected = self.reference.sum(1).chunk(2)
        inputs = {
            "input_ids": torch.ones_like(self.mask),
            "attention_mask": torch.ones_like(self.mask),
            "completion_mask": self.mask,
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        }
        loss = dpo_trainer.DPOTrainer._compute_loss(
            trainer, self._model, inputs, return_outputs=False
        )
        return float(loss), trainer._metrics["train"]

    def _model(self, **_: Any) -> SimpleNamespace:
        nothing = torch.zeros_like(self.policy)
        return SimpleNamespace(
            log_probs=self.policy,
            entropy=nothing,
            mean_logits=nothing,
            is_top1=nothing.bool(),
            log_sum_sq_probs=nothing,
        )


def mean(losses: Tensor) -> float:
    return losses.mean().item()


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.9])
@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge"])
def test_losses(kind: str, beta: float) -> None:
    batch = Batch(6)
    expected, _ = batch.trl({kind: 1.0}, beta)
    assert mean(
        pair_losses(batch.logps, loss_of_kind(kind, beta=beta))
    ) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_label_smoothing(smoothing: float) -> None:
    """TRL keeps cDPO's smoothing in `aot`, whose sorting does nothing to a batch of one pair."""
    for seed in range(5):
        batch = Batch(1, seed)
        expected, _ = batch.trl({"aot": 1.0}, 0.5, smoothing)
        loss = mean(
            pair_losses(batch.logps, Sigmoid(beta=0.5, label_smoothing=smoothing))
        )
        assert loss == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_robust(smoothing: float) -> None:
    batch = Batch(6)
    expected, _ = batch.trl({"robust": 1.0}, 0.5, smoothing)
    loss = mean(pair_losses(batch.logps, Robust(beta=0.5, label_smoothing=smoothing)))
    assert loss == pytest.approx(expected, rel=1e-9)


def test_nll_of_the_chosen_side() -> None:
    """TRL's `sft` is a mean over all tokens of the batch, ours over each pair's: equal for one pair."""
    for seed in range(5):
        batch = Batch(1, seed)
        expected, _ = batch.trl({"sigmoid": 1.0, "sft": 0.2}, 0.1)
        assert mean(pair_losses(batch.logps, Sigmoid(nll_weight=0.2))) == pytest.approx(
            expected, rel=1e-9
        )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("beta", [2.0, 2.5])
@pytest.mark.parametrize("gamma", [0.5, 1.4])
def test_simpo(beta: float, gamma: float, smoothing: float) -> None:
    """TRL has SimPO in its `CPOTrainer`, on averaged log-probs."""
    cpo_trainer = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    batch = Batch(6)
    averaged = (batch.policy.sum(1) / batch.lengths).chunk(2)
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"),
        alpha=0.0,
        loss_type="simpo",
        simpo_gamma=gamma,
        beta=beta,
        label_smoothing=smoothing,
    )
    expected, *rewards = cpo_trainer.CPOTrainer.cpo_loss(trainer, *averaged)
    config = Simpo(beta=beta, gamma=gamma, label_smoothing=smoothing)
    torch.testing.assert_close(pair_losses(batch.logps, config), expected)
    metrics = pair_metrics(batch.logps, config)
    torch.testing.assert_close(
        [metrics["rewards/chosen"], metrics["rewards/rejected"]], rewards
    )


@pytest.mark.parametrize("shift", [0.0, 0.3, -1.2])
def test_mpo(shift: float) -> None:
    """TRL's recipe of three losses. Its `bco_pair` has no shift, but δ is like a reference likelier by δ/β."""
    beta, terms = 0.1, {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}
    for seed in range(5):
        batch = Batch(1, seed)
        logps = replace(
            batch.logps, reward_shift=torch.tensor([shift], dtype=torch.float64)
        )
        batch.reference[torch.arange(2), PROMPT - 1] += shift / beta
        expected, _ = batch.trl(terms, beta)
        assert mean(pair_losses(logps, Mpo(beta=beta))) == pytest.approx(
            expected, rel=1e-9
        )


def test_metrics() -> None:
    batch = Batch(6)
    _, metrics = batch.trl({"sigmoid": 1.0}, 0.3)
    for name, values in pair_metrics(batch.logps, Sigmoid(beta=0.3)).items():
        assert mean(values) == pytest.approx(metrics[name][0], rel=1e-6), name


class Rollouts:
    """Token log-probs [completions, RESPONSE] of policy, reference and sampling, and an advantage of each."""

    def __init__(self, num_pairs: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows = 2 * num_pairs
        self.lengths = torch.randint(1, RESPONSE + 1, (rows,), generator=generator)
        self.mask = torch.arange(RESPONSE) < self.lengths[:, None]
        shape = (3, rows, RESPONSE)
        logps = -torch.rand(shape, generator=generator, dtype=torch.float64)
        self.policy, self.reference, self.sampling = logps * self.mask
        self.policy.requires_grad_()
        self.advantages = torch.randn(rows, generator=generator, dtype=torch.float64)

    @property
    def logps(self) -> PairLogps:
        rows = torch.stack([self.policy, self.reference, self.sampling], 2)
        return PairLogps(
            *self.policy.sum(1).chunk(2),
            *self.reference.sum(1).chunk(2),
            *self.lengths.chunk(2),
            advantages=torch.stack(self.advantages.chunk(2), 1),
            tokens=torch.stack(rows.chunk(2), 1),
        )

    def trl(self, settings: Grpo) -> tuple[Tensor, dict[str, Any]]:
        """The batch's loss and metrics by `GRPOTrainer`, with everything but the loss left out."""
        grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
        nothing = torch.zeros_like(self.policy)
        accelerator = SimpleNamespace(
            gather=lambda value: value, reduce=lambda value, reduction: value
        )
        trainer = SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *_, **__: (
                self.policy,
                nothing,
                None,
            ),
            model=SimpleNamespace(training=True),
            accelerator=accelerator,
            args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
            aux_loss_enabled=False,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            importance_sampling_level="token",
            loss_type="dr_grpo" if settings.divisor else "grpo",
            max_completion_length=settings.divisor,
            beta=settings.beta,
            epsilon_low=settings.clip,
            epsilon_high=settings.clip_high or settings.clip,
            use_vllm=False,
            current_gradient_accumulation_steps=1,
            _entropy_bonus_enabled=False,
            _metrics={"train": defaultdict(list)},
        )
        prompts = torch.ones(len(self.mask), PROMPT).long()
        inputs = {
            "prompt_ids": prompts,
            "prompt_mask": prompts,
            "completion_ids": self.mask.long(),
            "completion_mask": self.mask.long(),
            "advantages": self.advantages,
            "old_per_token_logps": self.sampling,
            "ref_per_token_logps": self.reference,
        }
        loss = grpo_trainer.GRPOTrainer._compute_loss(trainer, None, inputs)
        return loss, trainer._metrics["train"]


@pytest.mark.parametrize(
    "settings",
    [
        Grpo(),
        Grpo(beta=0.4, clip=0.1, clip_high=0.28),
        Grpo(beta=0.01, divisor=RESPONSE),
    ],
)
def test_grpo(settings: Grpo) -> None:
    """Loss and gradient, with tokens clipped on both sides."""
    batch = Rollouts(6)
    expected, metrics = batch.trl(settings)
    loss = pair_losses(batch.logps, settings).mean()
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, batch.policy)
    (wanted,) = torch.autograd.grad(expected, batch.policy)
    torch.testing.assert_close(gradient, wanted)
    assert metrics["clip_ratio/low_mean"][0] > 0
    assert metrics["clip_ratio/high_mean"][0] > 0


def test_figures_of_grpo() -> None:
    """TRL's are means over all tokens of a batch: equal for one pair of equally long sides."""
    settings = Grpo()
    batch = Rollouts(1)
    batch.lengths[:] = RESPONSE
    batch.mask[:] = True
    _, metrics = batch.trl(settings)
    figures = loss_figures(batch.logps, [settings])
    for name in (
        "kl",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
    ):
        assert figures[name] == pytest.approx(metrics[name]), name
