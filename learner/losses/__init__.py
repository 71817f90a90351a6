"""Losses of preference pairs: functions of log-probs, one value per pair.

With x the prompt, m its image, the log-ratios r+ = logp(y+) - logp_ref(y+), r- = logp(y-) - logp_ref(y-), and
delta = r+ - r-:

    sigmoid   -(1 - e) log σ(β delta) - e log σ(-β delta)           arXiv 2305.18290 Eq. 7; e: label smoothing (cDPO)
    robust    (e log σ(-β delta) - (1 - e) log σ(β delta)) / (1 - 2e)       arXiv 2403.00409; e: rate of wrong labels
    ipo       (r+ / |y+| - r- / |y-| - 1 / (2β))²                   arXiv 2310.12036 Eq. 17, length-normalised as in TRL
    hinge     max(0, 1 - β delta)                                   SLiC, arXiv 2305.10425, as a DPO loss
    simpo     -log σ(β logp(y+) / |y+| - β logp(y-) / |y-| - γ)     arXiv 2405.14734 Eq. 6; no reference
    sft       -logp(y+) / |y+|                                      y- has no part in it; no reference

    mdpo      sigmoid + a -log σ(β (r+ - r+(m'))) + b -log σ(β r+)  arXiv 2406.11839; m': see learner/batch/crops.py
    ddpo      -log σ(β (d+ - d-)),  d = Σ w_i r_i / Σ w_i           arXiv 2312.00849; w_i: γ in changed tokens, else 1
    mpo       a sigmoid + b BCO + c NLL+                            arXiv 2411.10442
                  BCO: -log σ(β r+ - δ) - log σ(-(β r- - δ))        δ: see reward_shift.py
                  NLL+: -logp(y+) / |y+|
    povid     ½ sigmoid(r+ - r_n) + ½ sigmoid(delta)                arXiv 2402.11411, stage 2; n: see noised_image.py
    rloo      -½ (A+ logp(y+) + A- logp(y-)) + ¼ β delta²           arXiv 2402.14740; A: see reward/rloo.py
    grpo      ½ (L+ + L-)                                           arXiv 2402.03300 Eq. 3; A: see reward/grpo.py
                  L: -Σ_t (min(ρ A, clip(ρ) A) - β k3) / |y|        ρ = π(t) / π_old(t), of the engine at sampling
                  k3: π_ref(t) / π(t) - log(π_ref(t) / π(t)) - 1    Eq. 4

`nll_weight` adds the chosen side's negative log-likelihood per token to any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.config.losses import (
    Ddpo,
    Grpo,
    Hinge,
    Ipo,
    Loss,
    Mdpo,
    Mpo,
    Povid,
    Rloo,
    Robust,
    Sft,
    Sigmoid,
    Simpo,
)
from learner.losses.base import Needs as Needs
from learner.losses.base import NoisedImage as NoisedImage
from learner.losses.base import PairLoss as PairLoss
from learner.losses.ddpo import DdpoLoss
from learner.losses.dpo import HingeLoss, IpoLoss, RobustLoss, SigmoidLoss
from learner.losses.grpo import GrpoLoss
from learner.losses.mdpo import MdpoLoss
from learner.losses.mpo import MpoLoss
from learner.losses.pair_logps import PairLogps
from learner.losses.povid import PovidLoss
from learner.losses.rloo import RlooLoss
from learner.losses.sft import SftLoss
from learner.losses.simpo import SimpoLoss

LOSSES: dict[type[Loss], type[PairLoss[Any]]] = {
    Sigmoid: SigmoidLoss,
    Robust: RobustLoss,
    Ipo: IpoLoss,
    Hinge: HingeLoss,
    Simpo: SimpoLoss,
    Sft: SftLoss,
    Mdpo: MdpoLoss,
    Ddpo: DdpoLoss,
    Mpo: MpoLoss,
    Povid: PovidLoss,
    Rloo: RlooLoss,
    Grpo: GrpoLoss,
}
"""Settings -> the loss that they are of."""


def make_loss(settings: Loss) -> PairLoss[Any]:
    """The loss with these settings."""
    return LOSSES[type(settings)](settings)


def pair_losses(logps: PairLogps, settings: Loss) -> Tensor:
    """The loss with these settings of every pair, the NLL of the chosen side included; [pairs]."""
    losses = make_loss(settings)(logps)
    # With weight 0 the term would still be NaN for a log-prob of -inf.
    if settings.nll_weight:
        weighted = settings.nll_weight * logps.policy_chosen
        losses = losses - weighted / logps.chosen_lengths
    return losses


def pair_metrics(logps: PairLogps, settings: Loss) -> dict[str, Tensor]:
    """Per-pair figures under the names TRL's users know, [pairs] each, detached; a batch's metric is their mean."""
    chosen, rejected = make_loss(settings).rewards(logps)
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "logps/chosen": logps.policy_chosen.detach(),
        "logps/rejected": logps.policy_rejected.detach(),
    }


@torch.no_grad()
def loss_figures(logps: PairLogps, settings: Sequence[Loss]) -> dict[str, list[float]]:
    """Metrics that single losses have of their pairs; those of other losses have no value in them.

    Args:
        settings: of the first pairs; any others, which are fillers, do not count.
    """
    columns: dict[str, list[float]] = {}
    for loss in dict.fromkeys(settings):
        places = [place for place, other in enumerate(settings) if other == loss]
        members = logps
        if len(places) < len(logps.policy_chosen):
            index = torch.tensor(places, device=logps.policy_chosen.device)
            members = logps.select(index)
        figures = make_loss(loss).figures(members)
        for name, values in figures.items():
            columns.setdefault(name, []).extend(values.double().tolist())
    return columns
