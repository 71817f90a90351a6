"""GRPO (arXiv 2402.03300, Eq. 3): PPO's clipped ratios (arXiv 1707.06347, Eq. 7), and a KL penalty on every token.

    ρ_t = π(t) / π_old(t)        π_old: the weights that sampled token t, as the engine told
    s_t = min(ρ_t A, clip(ρ_t, 1 - ε, 1 + ε_high) A)
    k3_t = π_ref(t) / π(t) - log(π_ref(t) / π(t)) - 1
    loss of a completion = -Σ_t (s_t - β k3_t) / its number of tokens, or a constant

With one update per batch on fresh pairs, ρ is 1 up to the rounding between engine and learner, and nothing is clipped.
Pairs that are some versions old (`loop.max_staleness`) have other ratios.

Each pair also has a mean over its two completions, and in each over its tokens, under the names of TRL:

    kl                                           k3
    clip_ratio/low_mean, clip_ratio/high_mean    tokens without a gradient of the reward, below and above
    clip_ratio/region_mean                       both
    sampling/importance_sampling_ratio/mean      ρ
    sampling/sampling_logp_difference/mean       |log ρ|
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from common.config.losses import Grpo
from learner.losses.base import Needs, PairLoss
from learner.losses.pair_logps import PairLogps


class TokenTerms(NamedTuple):
    """What the loss is made of: [pairs, 2, columns], `advantages` [pairs, 2, 1] and `lengths` [pairs, 2]."""

    ratios: Tensor
    kl: Tensor
    mask: Tensor
    advantages: Tensor
    lengths: Tensor

    def summed(self, values: Tensor) -> Tensor:
        """The sum over the tokens of a side, [pairs, 2]."""
        of_tokens = values.masked_fill(~self.mask, 0)
        return of_tokens.sum(2)


class GrpoLoss(PairLoss[Grpo]):
    """Clipped policy gradient with a KL penalty, the mean over both completions of a pair."""

    @property
    def needs(self) -> Needs:
        """Token by token; that it reads advantages and sampling is declared on `Grpo`."""
        return Needs(tokens=True)

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest ratio that is not clipped."""
        below = self.settings.clip
        above = self.settings.clip_high
        if above is None:
            above = below
        return 1 - below, 1 + above

    def __call__(self, logps: PairLogps) -> Tensor:
        """-Σ (s - β k3) / tokens of a completion, mean of both; [pairs]."""
        terms = token_terms(logps)
        advantages = terms.advantages
        lowest, highest = self.bounds
        clipped = terms.ratios.clamp(lowest, highest)
        surrogate = torch.minimum(
            terms.ratios * advantages,
            clipped * advantages,
        )
        penalty = self.settings.beta * terms.kl
        sums = terms.summed(surrogate - penalty)
        divisors = self.settings.divisor or terms.lengths
        of_sides = -sums / divisors
        return of_sides.mean(1)

    def figures(self, logps: PairLogps) -> dict[str, Tensor]:
        """KL, ratios and how many of them are clipped; [pairs] each."""
        terms = token_terms(logps)
        ratios = terms.ratios
        is_good = terms.advantages > 0
        is_bad = terms.advantages < 0
        lowest, highest = self.bounds
        low = is_bad & (ratios < lowest)
        high = is_good & (ratios > highest)
        values = {
            "kl": terms.kl,
            "clip_ratio/low_mean": low,
            "clip_ratio/high_mean": high,
            "clip_ratio/region_mean": low | high,
            "sampling/importance_sampling_ratio/mean": ratios,
            "sampling/sampling_logp_difference/mean": ratios.log().abs(),
        }
        figures: dict[str, Tensor] = {}
        for name, value in values.items():
            of_sides = terms.summed(value) / terms.lengths
            figures[name] = of_sides.mean(1)
        return figures


def token_terms(logps: PairLogps) -> TokenTerms:
    """Ratios to the sampling policy and k3 of every token."""
    assert logps.advantages is not None, "the update reads them from the pairs"
    assert logps.tokens is not None, "the update fills them for this loss"
    policy, reference, sampling = logps.tokens.unbind(3)
    log_ratios = policy - sampling
    to_reference = reference - policy
    lengths = torch.stack(
        [logps.chosen_lengths, logps.rejected_lengths],
        1,
    )
    num_columns = policy.shape[2]
    columns = torch.arange(num_columns, device=policy.device)
    return TokenTerms(
        ratios=log_ratios.exp(),
        # Near 0 exp(d) - d - 1 would be rounding alone, of either sign.
        kl=to_reference.expm1() - to_reference,
        mask=columns < lengths.unsqueeze(2),
        advantages=logps.advantages.unsqueeze(2),
        lengths=lengths,
    )
