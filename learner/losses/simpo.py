"""SimPO (arXiv 2405.14734): the reward is the log-prob per token, without a reference."""

from __future__ import annotations

from torch import Tensor

from common.config.losses import Simpo
from learner.losses.base import ReferenceFreeLoss, smoothed_sigmoid
from learner.losses.pair_logps import PairLogps


class SimpoLoss(ReferenceFreeLoss[Simpo]):
    """The chosen side's reward must lead by the target margin γ."""

    def __call__(self, logps: PairLogps) -> Tensor:
        """-log σ(β logp(y+) / |y+| - β logp(y-) / |y-| - γ), Eq. 6; [pairs]."""
        chosen, rejected = self.rewards(logps)
        margins = chosen - rejected - self.settings.gamma
        return smoothed_sigmoid(margins, self.settings)
