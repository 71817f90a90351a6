"""What a batch is trained on: a loss and a weight for each of its pairs, by the pair's source.

    batch loss = Σ w_i · loss_i / Σ w_i        over all pairs of the global batch, w_i the weight of pair i's source

It is a weighted mean: weights say how sources relate, not how large the loss is, and without any it is the plain mean.
With γ for the source of an external rejected answer, 1 - γ for BDHS's, and both for each prompt of the batch, it is
the mean over prompts of γ·L(y+, y-_external) + (1 - γ)·L(y+, y-_BDHS) (arXiv 2407.02477, section 3.4; there γ = 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.config import Learner as LearnerConfig
from common.config import Loss
from common.records import PreferencePair
from learner.losses import REFERENCE_FREE


@dataclass(frozen=True, slots=True)
class Objective:
    """The configured losses, and what of them depends on the whole global batch: equal on all ranks."""

    config: LearnerConfig
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
        """For a global batch of these pairs, all of which are trained on, after rewards of the mean `reward_shift`."""
        sampled = [pair for pair in pairs if config.loss_of(pair.source).kind == "rloo"]
        squares = [score**2 for pair in sampled for score in pair.scores or ()]
        normalise = squares and config.loss_of(sampled[0].source).rloo_normalise
        scale = math.sqrt(sum(squares) / len(squares)) if normalise else 1.0
        return cls(
            config,
            sum(config.weight_of(pair.source) for pair in pairs),
            scale or 1.0,
            reward_shift,
        )

    @property
    def needs_reference(self) -> bool:
        """Whether any loss of the run reads the reference's log-probs."""
        return not set(self.config.loss_kinds) <= set(REFERENCE_FREE)

    def loss(self, pair: PreferencePair) -> Loss:
        """The loss of a pair."""
        return self.config.loss_of(pair.source)

    def advantages(
        self, pairs: Sequence[PreferencePair]
    ) -> list[tuple[float, float]] | None:
        """Of both sides of each pair, scaled; 0 for pairs of other losses, None when no pair has the rloo loss."""
        if all(self.loss(pair).kind != "rloo" for pair in pairs):
            return None
        scores = [
            (pair.scores if self.loss(pair).kind == "rloo" else None) or (0.0, 0.0)
            for pair in pairs
        ]
        return [
            (better / self.advantage_scale, worse / self.advantage_scale)
            for better, worse in scores
        ]

    def weight(self, pair: PreferencePair) -> float:
        """The weight of a pair in the batch's mean."""
        return self.config.weight_of(pair.source)
