"""Preference losses: pure functions of summed log-probs, one value per pair.

With x the prompt and the log-ratios r+ = logp(y+) - logp_ref(y+), r- = logp(y-) - logp_ref(y-), delta = r+ - r-:

    sigmoid   -(1 - e) log σ(β delta) - e log σ(-β delta)           arXiv 2305.18290 Eq. 7; e: label smoothing (cDPO)
    ipo       (r+ / |y+| - r- / |y-| - 1 / (2β))²                   arXiv 2310.12036 Eq. 17, length-normalised as in TRL
    hinge     max(0, 1 - β delta)                                   SLiC, arXiv 2305.10425, as a DPO loss

    rloo      -½ (A+ logp(y+) + A- logp(y-)) + ¼ β delta²           arXiv 2402.14740; A: see reward/rloo.py
    povid     ½ sigmoid(r+ - r_n) + ½ sigmoid(delta)                arXiv 2402.11411, stage 2; n: see learner/povid.py

`nll_weight` adds the chosen side's negative log-likelihood per token to any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import Loss


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed completion log-probs in nats and completion lengths in tokens, each of shape [pairs].

    For losses that ask for it: `policy_noise` and `ref_noise`, of what the models would say of the noised image, and
    `advantages` of chosen and rejected, [pairs, 2].
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    policy_noise: Tensor | None = None
    ref_noise: Tensor | None = None
    advantages: Tensor | None = None

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

    @property
    def num_tokens(self) -> Tensor:
        """Tokens of both completions, [pairs]."""
        return self.chosen_lengths + self.rejected_lengths

    def select(self, index: Tensor) -> PairLogps:
        """The pairs at these places."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: value[index] for name, value in values.items() if value is not None})


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


def povid_loss(logps: PairLogps, config: Loss) -> Tensor:
    """Half of DPO against the tokens of the noised image, half against the rejected text; [pairs]."""
    assert logps.policy_noise is not None and logps.ref_noise is not None, "the update finds them for this loss"
    noise_delta = logps.chosen_ratios - (logps.policy_noise - logps.ref_noise)
    return -0.5 * F.logsigmoid(config.beta * noise_delta) - 0.5 * F.logsigmoid(config.beta * logps.delta)


def rloo_loss(logps: PairLogps, config: Loss) -> Tensor:
    """Policy gradient with a KL penalty, per completion; [pairs].

    With kl_i = logp_i - logp_ref_i in the reward and the partner's as its baseline, the penalty's gradient is
    ½ β [(kl+ - kl-) ∇logp+ + (kl- - kl+) ∇logp-] = ∇ ¼ β delta², an unbiased estimate of β ∇KL(policy || reference).
    """
    assert logps.advantages is not None, "the update reads them from the pairs for this loss"
    better, worse = logps.advantages.unbind(1)
    gain = 0.5 * (better * logps.policy_chosen + worse * logps.policy_rejected)
    return 0.25 * config.beta * logps.delta**2 - gain


LOSSES: dict[str, Callable[[PairLogps, Loss], Tensor]] = {
    "sigmoid": sigmoid_loss,
    "ipo": ipo_loss,
    "hinge": hinge_loss,
}
"""`learner.loss.kind` -> function of log-probs of the pair alone."""

LOSSES_WITH_MORE: dict[str, Callable[[PairLogps, Loss], Tensor]] = {"povid": povid_loss, "rloo": rloo_loss}
"""The same for losses that need `PairLogps`'s optional fields."""


def pair_losses(logps: PairLogps, config: Loss) -> Tensor:
    """The configured loss of every pair, [pairs]."""
    losses = (LOSSES | LOSSES_WITH_MORE)[config.kind](logps, config)
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


def each_by_its_own(
    function: Callable[[PairLogps, Loss], dict[str, Tensor]], logps: PairLogps, configs: Sequence[Loss]
) -> dict[str, Tensor]:
    """`function` of every pair under its own settings, [pairs] per name; pairs of equal settings go together."""
    distinct = list(dict.fromkeys(configs))
    if len(distinct) == 1:
        return function(logps, distinct[0])
    number = torch.tensor([distinct.index(config) for config in configs], device=logps.policy_chosen.device)
    places = [(number == index).nonzero().squeeze(1) for index in range(len(distinct))]
    parts = [function(logps.select(place), config) for place, config in zip(places, distinct, strict=True)]
    order = torch.cat(places).argsort()
    return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
