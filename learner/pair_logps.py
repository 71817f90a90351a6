"""What losses read of a pair: summed log-probs of both sides under policy and reference, and what some ask for more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from common.config import Loss
from learner.changes import changed_mask
from learner.encoded import EncodedPair
from learner.logps import CompletionLogps


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed completion log-probs in nats and completion lengths in tokens, each of shape [pairs].

    For losses that ask for it, None where none does:

    `policy_noise`, `ref_noise` [pairs]   of what the models would say of the noised image (povid)
    `advantages` [pairs, 2]               of chosen and rejected (rloo)
    `cropped_ratios` [pairs]              logp - logp_ref of the chosen side behind a crop of its image (mdpo)
    `changed_ratios` [pairs, 2]           the part of both sides' log-ratios that lies in changed spans (ddpo)
    `changed_lengths` [pairs, 2]          tokens in changed spans (ddpo)
    `reward_shift` [pairs]                mean reward of the run so far (mpo)
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
    cropped_ratios: Tensor | None = None
    changed_ratios: Tensor | None = None
    changed_lengths: Tensor | None = None
    reward_shift: Tensor | None = None

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
        return replace(
            self,
            **{
                name: value[index]
                for name, value in values.items()
                if value is not None
            },
        )


def pair_logps(
    policy: CompletionLogps,
    reference: CompletionLogps | None,
    pairs: Sequence[EncodedPair] = (),
) -> PairLogps:
    """Rows of a forward as pairs; rows are as in `learner.encoded.rows_of`.

    Args:
        reference: None when no loss reads it, which then counts as 0.
        pairs: what the rows were made from; may be left out when there are but chosen and rejected rows.
    """
    num = len(pairs) or len(policy.mask) // 2
    own, lengths = policy.summed, policy.num_tokens
    other = torch.zeros_like(own) if reference is None else reference.summed
    chosen, rejected = slice(num), slice(num, 2 * num)
    logps = PairLogps(
        own[chosen],
        own[rejected],
        other[chosen],
        other[rejected],
        lengths[chosen],
        lengths[rejected],
    )
    places = [place for place, pair in enumerate(pairs) if pair.cropped is not None]
    if places:
        index = torch.tensor(places, device=own.device)
        cropped = logps.chosen_ratios.index_put((index,), (own - other)[2 * num :])
        logps = replace(logps, cropped_ratios=cropped)
    if (
        reference is not None
        and policy.alternatives is not None
        and reference.alternatives is not None
    ):
        noise, ref_noise = (
            each[chosen].sum(1)
            for each in (policy.alternatives, reference.alternatives)
        )
        # ZeRO-3 waits on every rank for the gradient of every output, also where no pair of a rank has this loss.
        logps = replace(
            logps,
            policy_chosen=logps.policy_chosen + 0 * noise,
            policy_noise=noise,
            ref_noise=ref_noise,
        )
    return logps


def with_changes(
    logps: PairLogps,
    policy: CompletionLogps,
    reference: CompletionLogps | None,
    pairs: Sequence[EncodedPair],
    min_matches: Sequence[int | None],
) -> PairLogps:
    """The same with what lies in changed spans; `min_matches` as in `changes`, None for pairs that need it not."""
    assert reference is not None, "ddpo reads the reference"
    num = len(pairs)
    mask = changed_mask(pairs, min_matches, policy.mask.shape[1]).to(policy.mask.device)
    ratios = (
        (policy.token_logps - reference.token_logps)[: 2 * num]
        .masked_fill(~mask, 0.0)
        .sum(1)
    )
    lengths = mask.sum(1)
    return replace(
        logps,
        changed_ratios=torch.stack([ratios[:num], ratios[num:]], 1),
        changed_lengths=torch.stack([lengths[:num], lengths[num:]], 1),
    )


def each_by_its_own(
    function: Callable[[PairLogps, Loss], dict[str, Tensor]],
    logps: PairLogps,
    configs: Sequence[Loss],
) -> dict[str, Tensor]:
    """`function` of every pair under its own settings, [pairs] per name; pairs of equal settings go together."""
    distinct = list(dict.fromkeys(configs))
    if len(distinct) == 1:
        return function(logps, distinct[0])
    number = torch.tensor(
        [distinct.index(config) for config in configs],
        device=logps.policy_chosen.device,
    )
    places = [(number == index).nonzero().squeeze(1) for index in range(len(distinct))]
    parts = [
        function(logps.select(place), config)
        for place, config in zip(places, distinct, strict=True)
    ]
    order = torch.cat(places).argsort()
    return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
