"""DPO and its relatives: functions of the pair's log-ratios alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.config.losses import Hinge, Ipo, Robust, Sigmoid
from learner.losses.base import PairLoss, smoothed_sigmoid
from learner.losses.pair_logps import PairLogps


class SigmoidLoss(PairLoss[Sigmoid]):
    """DPO, with label smoothing when labels are known to be wrong at that rate (cDPO)."""

    def __call__(self, logps: PairLogps) -> Tensor:
        """-(1 - e) log σ(β delta) - e log σ(-β delta), arXiv 2305.18290 Eq. 7; [pairs]."""
        margins = self.settings.beta * logps.delta
        return smoothed_sigmoid(margins, self.settings)


class RobustLoss(PairLoss[Robust]):
    """DPO whose mean over labels wrong at the smoothing's rate equals DPO's mean over right labels."""

    def __call__(self, logps: PairLogps) -> Tensor:
        """(e log σ(-β delta) - (1 - e) log σ(β delta)) / (1 - 2e), arXiv 2403.00409; may be below 0; [pairs]."""
        margins = self.settings.beta * logps.delta
        flip_rate = self.settings.label_smoothing
        flipped = flip_rate * F.logsigmoid(-margins)
        right = (1 - flip_rate) * F.logsigmoid(margins)
        # The config keeps e below one half, so that this is above 0.
        scale = 1 - 2 * flip_rate
        return (flipped - right) / scale


class IpoLoss(PairLoss[Ipo]):
    """IPO, length-normalised as in TRL."""

    def __call__(self, logps: PairLogps) -> Tensor:
        """(r+ / |y+| - r- / |y-| - 1 / (2β))², arXiv 2310.12036 Eq. 17; [pairs]."""
        chosen = logps.chosen_ratios / logps.chosen_lengths
        rejected = logps.rejected_ratios / logps.rejected_lengths
        target_margin = 1 / (2 * self.settings.beta)
        return (chosen - rejected - target_margin) ** 2


class HingeLoss(PairLoss[Hinge]):
    """SLiC as a DPO loss: there is no loss beyond a margin of 1."""

    def __call__(self, logps: PairLogps) -> Tensor:
        """max(0, 1 - β delta), arXiv 2305.10425; [pairs]."""
        margins = self.settings.beta * logps.delta
        return torch.relu(1 - margins)
