"""Dense DPO of RLHF-V (arXiv 2312.00849): tokens in which the two answers differ weigh more."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.config.losses import Ddpo
from learner.losses.base import Needs, PairLoss
from learner.losses.pair_logps import PairLogps


class DdpoLoss(PairLoss[Ddpo]):
    """DPO on log-ratios whose changed tokens count γ times, as means over the weights or as sums."""

    @property
    def needs(self) -> Needs:
        """The part of the log-ratios that lies in changed tokens."""
        return Needs(changed_tokens=self.settings.min_match)

    def __call__(self, logps: PairLogps) -> Tensor:
        """-log σ(β (d+ - d-)) with d = Σ w_i r_i / Σ w_i, w_i = γ in changed tokens and 1 elsewhere; [pairs]."""
        assert logps.changed_ratios is not None, "the update compares the tokens"
        assert logps.changed_lengths is not None, "the update compares the tokens"
        # Every token has weight 1 already; changed ones get γ - 1 on top.
        extra_weight = self.settings.gamma - 1
        # Σ w_i r_i, then Σ w_i: [pairs, 2], chosen and rejected.
        ratios = torch.stack([logps.chosen_ratios, logps.rejected_ratios], 1)
        weighted_ratios = ratios + extra_weight * logps.changed_ratios
        if self.settings.normalise:
            lengths = torch.stack([logps.chosen_lengths, logps.rejected_lengths], 1)
            weights = lengths + extra_weight * logps.changed_lengths
            weighted_ratios = weighted_ratios / weights
        chosen, rejected = weighted_ratios.unbind(1)
        margins = self.settings.beta * (chosen - rejected)
        return -F.logsigmoid(margins)
