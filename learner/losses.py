"""Preference losses: pure functions of summed log-probs, one value per pair.

With x the prompt and the log-ratios r+ = logp(y+) - logp_ref(y+), r- = logp(y-) - logp_ref(y-), delta = r+ - r-:

    sigmoid   -(1 - e) log σ(β delta) - e log σ(-β delta)           arXiv 2305.18290 Eq. 7; e: label smoothing (cDPO)
    ipo       (r+ / |y+| - r- / |y-| - 1 / (2β))²                   arXiv 2310.12036 Eq. 17, length-normalised as in TRL
    hinge     max(0, 1 - β delta)                                   SLiC, arXiv 2305.10425, as a DPO loss

`nll_weight` adds the chosen side's negative log-likelihood per token to any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import Loss


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed completion log-probs in nats and completion lengths in tokens, each of shape [pairs]."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @property
    def chosen_ratios(self) -> Tensor:
        """logp - logp_ref of the chosen side, [pairs]."""
        return self.policy_chosen - self.ref_chosen

    @property
    def rejected_ratios(self) -> Tensor:
        """logp - logp_ref of the rejected side, [pairs]."""
        return self.policy_rejected - self.ref_rejected

    @property
    def delta(self) -> Tensor:
        """The difference of the log-ratios, [pairs]: the implicit reward margin without β."""
        return self.chosen_ratios - self.rejected_ratios


def sigmoid_loss(logps: PairLogps, config: Loss) -> Tensor:
    """DPO, with label smoothing when labels are known to be wrong at that rate; [pairs]."""
    margins = config.beta * logps.delta
    smoothing = config.label_smoothing
    return -(1 - smoothing) * F.logsigmoid(margins) - smoothing * F.logsigmoid(-margins)


def ipo_loss(logps: PairLogps, config: Loss) -> Tensor:
    """Squared distance of the per-token margin to 1 / (2β); [pairs]."""
    per_token = logps.chosen_ratios / logps.chosen_lengths - logps.rejected_ratios / logps.rejected_lengths
    return (per_token - 1 / (2 * config.beta)) ** 2


def hinge_loss(logps: PairLogps, config: Loss) -> Tensor:
    """No loss beyond a margin of 1; [pairs]."""
    return torch.relu(1 - config.beta * logps.delta)


LOSSES: dict[str, Callable[[PairLogps, Loss], Tensor]] = {
    "sigmoid": sigmoid_loss,
    "ipo": ipo_loss,
    "hinge": hinge_loss,
}
"""`learner.loss.kind` -> function."""


def pair_losses(logps: PairLogps, config: Loss) -> Tensor:
    """The configured loss of every pair, [pairs]; a batch's loss is their mean."""
    losses = LOSSES[config.kind](logps, config)
    if config.nll_weight:
        losses = losses - config.nll_weight * logps.policy_chosen / logps.chosen_lengths
    return losses


def pair_metrics(logps: PairLogps, config: Loss) -> dict[str, Tensor]:
    """Per-pair figures under the names TRL's users know, [pairs] each, detached; a batch's metric is their mean."""
    chosen = (config.beta * logps.chosen_ratios).detach()
    rejected = (config.beta * logps.rejected_ratios).detach()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "logps/chosen": logps.policy_chosen.detach(),
        "logps/rejected": logps.policy_rejected.detach(),
    }
