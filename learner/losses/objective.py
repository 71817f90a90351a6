"""What a batch is trained on: a loss and a weight for each of its pairs, by the pair's source.

    batch loss = Σ w_i · loss_i / Σ w_i        over all pairs of the global batch, w_i the weight of pair i's source

It is a weighted mean: weights say how sources relate, not how large the loss is, and without any it is the plain mean.
With γ for the source of an external rejected answer, 1 - γ for BDHS's, and both for each prompt of the batch, it is
the mean over prompts of γ·L(y+, y-_external) + (1 - γ)·L(y+, y-_BDHS) (arXiv 2407.02477, section 3.4; there γ = 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.config import Learner as LearnerConfig
from common.config import RunConfig
from common.config.losses import Loss
from common.records import PreferencePair
from common.seeding import derive_seed
from learner.batch.crops import Crop
from learner.losses import Needs, make_loss


@dataclass(frozen=True, slots=True)
class Objective:
    """The configured losses, and what of them depends on the whole global batch: equal on all ranks.

    Args:
        config: with the losses of the run.
        losses: those of the batch's pairs, each once.
        total_weight: of all pairs of the batch.
        advantage_scale: advantages are divided by it.
        reward_shift: mean reward of earlier steps.
    """

    config: LearnerConfig
    losses: tuple[Loss, ...]
    total_weight: float
    advantage_scale: float = 1.0
    reward_shift: float = 0.0

    @classmethod
    def of(
        cls,
        config: LearnerConfig,
        pairs: Sequence[PreferencePair],
        reward_shift: float = 0.0,
    ) -> Objective:
        """The objective of a global batch that consists of these pairs."""
        losses = [config.loss_of(pair.source) for pair in pairs]
        weights = [config.weight_of(pair.source) for pair in pairs]
        distinct_losses = dict.fromkeys(losses)
        return cls(
            config=config,
            losses=tuple(distinct_losses),
            total_weight=sum(weights),
            advantage_scale=_advantage_scale(pairs, losses),
            reward_shift=reward_shift,
        )

    @property
    def needs_reference(self) -> bool:
        """Whether any loss of the run reads the reference's log-probs."""
        return any(loss.reads_reference for loss in self.config.losses)

    @property
    def needs_noised_images(self) -> bool:
        """Whether any loss of the batch reads what the models say of a noised image."""
        needs = [make_loss(loss).needs for loss in self.losses]
        return any(need.noised_image for need in needs)

    def loss(self, pair: PreferencePair) -> Loss:
        """The settings of a pair's loss."""
        return self.config.loss_of(pair.source)

    def needs(self, pair: PreferencePair) -> Needs:
        """What a pair's loss needs."""
        settings = self.loss(pair)
        return make_loss(settings).needs

    def advantages(
        self,
        pairs: Sequence[PreferencePair],
    ) -> list[tuple[float, float]] | None:
        """Scaled advantages of chosen and rejected of each pair, 0 where its loss reads none.

        Return None when no pair's loss reads them.
        """
        # Other sources may carry judge scores in the same field: those are no advantages.
        advantages: list[tuple[float, float]] = []
        any_reads_them = False
        scale = self.advantage_scale
        for pair in pairs:
            chosen, rejected = 0.0, 0.0
            if self.loss(pair).reads_advantages:
                any_reads_them = True
                chosen, rejected = pair.scores or (0.0, 0.0)
            advantages.append((chosen / scale, rejected / scale))
        return advantages if any_reads_them else None

    def weight(self, pair: PreferencePair) -> float:
        """The weight of a pair in the batch's mean."""
        return self.config.weight_of(pair.source)


def _advantage_scale(pairs: Sequence[PreferencePair], losses: Sequence[Loss]) -> float:
    """The root mean square of the advantages of a batch; 1 if they are all 0 or not to be normalised."""
    # Over both sides of all pairs of the global batch, so that it does not depend on ranks or micro-batches.
    squares: list[float] = []
    normalised = False
    for pair, loss in zip(pairs, losses, strict=True):
        if loss.reads_advantages:
            normalised = make_loss(loss).needs.normalised_advantages
            squares += [score**2 for score in pair.scores or ()]
    if not squares or not normalised:
        return 1.0
    mean_square = sum(squares) / len(squares)
    return math.sqrt(mean_square) or 1.0


def crop_of(config: RunConfig) -> Callable[[PreferencePair], Crop | None]:
    """The crop that each pair of a run gets, None for pairs whose loss needs none."""

    def crop(pair: PreferencePair) -> Crop | None:
        loss = make_loss(config.learner.loss_of(pair.source))
        shares = loss.needs.crop
        if shares is None:
            return None
        low, high = shares
        # The pair's id, not its place in a batch: it gets the same crop in every epoch.
        seed = derive_seed(config.run.seed, "mdpo", pair.id)
        return Crop(seed, low, high)

    return crop
