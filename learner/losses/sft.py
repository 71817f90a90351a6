"""Supervised fine-tuning on the chosen side; the rejected one has no part in it."""

from __future__ import annotations

from torch import Tensor

from common.config.losses import Sft
from learner.losses.base import ReferenceFreeLoss
from learner.losses.pair_logps import PairLogps


class SftLoss(ReferenceFreeLoss[Sft]):
    """The chosen side's negative log-likelihood per token."""

    def __call__(self, logps: PairLogps) -> Tensor:
        """-logp(y+) / |y+|; [pairs]."""
        return -logps.policy_chosen / logps.chosen_lengths
