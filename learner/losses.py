"""Preference losses: pure functions of summed log-probs, one value per pair.

With x the prompt, m its image, the log-ratios r+ = logp(y+) - logp_ref(y+), r- = logp(y-) - logp_ref(y-), and
delta = r+ - r-:

    sigmoid   -(1 - e) log σ(β delta) - e log σ(-β delta)           arXiv 2305.18290 Eq. 7; e: label smoothing (cDPO)
    robust    (e log σ(-β delta) - (1 - e) log σ(β delta)) / (1 - 2e)       arXiv 2403.00409; e: rate of wrong labels
    ipo       (r+ / |y+| - r- / |y-| - 1 / (2β))²                   arXiv 2310.12036 Eq. 17, length-normalised as in TRL
    hinge     max(0, 1 - β delta)                                   SLiC, arXiv 2305.10425, as a DPO loss
    simpo     -log σ(β logp(y+) / |y+| - β logp(y-) / |y-| - γ)     arXiv 2405.14734 Eq. 6; no reference

    mdpo      sigmoid + a -log σ(β (r+ - r+(m'))) + b -log σ(β r+)  arXiv 2406.11839; m': see learner/crops.py
    ddpo      -log σ(β (d+ - d-)),  d = Σ w_i r_i / Σ w_i           arXiv 2312.00849; w_i: γ in changed spans, else 1
    mpo       a sigmoid + b BCO + c NLL+                            arXiv 2411.10442
                  BCO: -log σ(β r+ - δ) - log σ(-(β r- - δ))        δ: see learner/reward_shift.py
                  NLL+: -logp(y+) / |y+|
    povid     ½ sigmoid(r+ - r_n) + ½ sigmoid(delta)                arXiv 2402.11411, stage 2; n: see learner/povid.py
    rloo      -½ (A+ logp(y+) + A- logp(y-)) + ¼ β delta²           arXiv 2402.14740; A: see reward/rloo.py

`nll_weight` adds the chosen side's negative log-likelihood per token to any of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import Loss
from learner.pair_logps import PairLogps

REFERENCE_FREE = ("simpo",)
"""Losses that do not read the reference's log-probs, nor do their metrics."""


def sigmoid_loss(logps: PairLogps, config: Loss) -> Tensor:
    """DPO, with label smoothing when labels are known to be wrong at that rate; [pairs]."""
    return _smoothed(config.beta * logps.delta, config)


def robust_loss(logps: PairLogps, config: Loss) -> Tensor:
    """DPO whose mean over labels wrong at the smoothing's rate is that over right ones; may be below 0; [pairs]."""
    margins, flips = config.beta * logps.delta, config.label_smoothing
    return (flips * F.logsigmoid(-margins) - (1 - flips) * F.logsigmoid(margins)) / (
        1 - 2 * flips
    )


def ipo_loss(logps: PairLogps, config: Loss) -> Tensor:
    """Squared distance of the per-token margin to 1 / (2β); [pairs]."""
    per_token = (
        logps.chosen_ratios / logps.chosen_lengths
        - logps.rejected_ratios / logps.rejected_lengths
    )
    return (per_token - 1 / (2 * config.beta)) ** 2


def hinge_loss(logps: PairLogps, config: Loss) -> Tensor:
    """No loss beyond a margin of 1; [pairs]."""
    return torch.relu(1 - config.beta * logps.delta)


def simpo_loss(logps: PairLogps, config: Loss) -> Tensor:
    """The per-token log-prob of the chosen side, β times, is to lead by γ; [pairs]."""
    chosen, rejected = rewards(logps, config)
    return _smoothed(chosen - rejected - config.simpo_gamma, config)


def mdpo_loss(logps: PairLogps, config: Loss) -> Tensor:
    """DPO, and the chosen side must be likelier for the whole image than for a crop, and than for the reference.

    A prompt without an image is its own crop: its image term is log 2 and teaches nothing; [pairs].
    """
    assert logps.cropped_ratios is not None, (
        "the collator adds the crops' rows for this loss"
    )
    chosen = logps.chosen_ratios
    image = -F.logsigmoid(config.beta * (chosen - logps.cropped_ratios))
    anchor = -F.logsigmoid(config.beta * chosen)
    text = -F.logsigmoid(config.beta * logps.delta)
    return text + config.mdpo_image_weight * image + config.mdpo_anchor_weight * anchor


def ddpo_loss(logps: PairLogps, config: Loss) -> Tensor:
    """DPO on log-ratios whose changed tokens count γ times, as means over the weights or as sums; [pairs]."""
    assert logps.changed_ratios is not None and logps.changed_lengths is not None, (
        "the update finds them for this loss"
    )
    more = config.ddpo_gamma - 1
    ratios = (
        torch.stack([logps.chosen_ratios, logps.rejected_ratios], 1)
        + more * logps.changed_ratios
    )
    if config.ddpo_normalise:
        lengths = torch.stack([logps.chosen_lengths, logps.rejected_lengths], 1)
        ratios = ratios / (lengths + more * logps.changed_lengths)
    return -F.logsigmoid(config.beta * (ratios[:, 0] - ratios[:, 1]))


def mpo_loss(logps: PairLogps, config: Loss) -> Tensor:
    """Which side is better (sigmoid), whether each is good (BCO), and how to give the chosen one (NLL); [pairs]."""
    assert logps.reward_shift is not None, "the update gives it for this loss"
    chosen, rejected = (
        reward - logps.reward_shift for reward in rewards(logps, config)
    )
    quality = -F.logsigmoid(chosen) - F.logsigmoid(-rejected)
    generation = -logps.policy_chosen / logps.chosen_lengths
    preference = config.mpo_preference_weight * sigmoid_loss(logps, config)
    return (
        preference
        + config.mpo_quality_weight * quality
        + config.mpo_generation_weight * generation
    )


def povid_loss(logps: PairLogps, config: Loss) -> Tensor:
    """Half of DPO against the tokens of the noised image, half against the rejected text; [pairs]."""
    assert logps.policy_noise is not None and logps.ref_noise is not None, (
        "the update finds them for this loss"
    )
    noise_delta = logps.chosen_ratios - (logps.policy_noise - logps.ref_noise)
    return -0.5 * F.logsigmoid(config.beta * noise_delta) - 0.5 * F.logsigmoid(
        config.beta * logps.delta
    )


def rloo_loss(logps: PairLogps, config: Loss) -> Tensor:
    """Policy gradient with a KL penalty, per completion; [pairs].

    With kl_i = logp_i - logp_ref_i in the reward and the partner's as its baseline, the penalty's gradient is
    ½ β [(kl+ - kl-) ∇logp+ + (kl- - kl+) ∇logp-] = ∇ ¼ β delta², an unbiased estimate of β ∇KL(policy || reference).
    """
    assert logps.advantages is not None, (
        "the update reads them from the pairs for this loss"
    )
    better, worse = logps.advantages.unbind(1)
    gain = 0.5 * (better * logps.policy_chosen + worse * logps.policy_rejected)
    return 0.25 * config.beta * logps.delta**2 - gain


def _smoothed(margins: Tensor, config: Loss) -> Tensor:
    smoothing = config.label_smoothing
    return -(1 - smoothing) * F.logsigmoid(margins) - smoothing * F.logsigmoid(-margins)


LOSSES: dict[str, Callable[[PairLogps, Loss], Tensor]] = {
    "sigmoid": sigmoid_loss,
    "robust": robust_loss,
    "ipo": ipo_loss,
    "hinge": hinge_loss,
    "simpo": simpo_loss,
}
"""`learner.loss.kind` -> function of log-probs of the pair alone."""

LOSSES_WITH_MORE: dict[str, Callable[[PairLogps, Loss], Tensor]] = {
    "mdpo": mdpo_loss,
    "ddpo": ddpo_loss,
    "mpo": mpo_loss,
    "povid": povid_loss,
    "rloo": rloo_loss,
}
"""The same for losses that need `PairLogps`'s optional fields."""


def pair_losses(logps: PairLogps, config: Loss) -> Tensor:
    """The configured loss of every pair, [pairs]."""
    losses = (LOSSES | LOSSES_WITH_MORE)[config.kind](logps, config)
    if config.nll_weight:
        losses = losses - config.nll_weight * logps.policy_chosen / logps.chosen_lengths
    return losses


def rewards(logps: PairLogps, config: Loss) -> tuple[Tensor, Tensor]:
    """Implicit rewards of chosen and rejected, [pairs] each: β times the log-ratio; of simpo β logp(y) / |y|."""
    if config.kind in REFERENCE_FREE:
        sides = (
            logps.policy_chosen / logps.chosen_lengths,
            logps.policy_rejected / logps.rejected_lengths,
        )
    else:
        sides = logps.chosen_ratios, logps.rejected_ratios
    return config.beta * sides[0], config.beta * sides[1]


def pair_metrics(logps: PairLogps, config: Loss) -> dict[str, Tensor]:
    """Per-pair figures under the names TRL's users know, [pairs] each, detached; a batch's metric is their mean."""
    chosen, rejected = (reward.detach() for reward in rewards(logps, config))
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "logps/chosen": logps.policy_chosen.detach(),
        "logps/rejected": logps.policy_rejected.detach(),
    }
