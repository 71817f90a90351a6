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

    log_ratios: Tensor
    kl: Tensor
    mask: Tensor
    advantages: Tensor
    lengths: Tensor


class GrpoLoss(PairLoss[Grpo]):
    """Clipped policy gradient with a KL penalty, the mean over both completions of a pair."""

    @property
    def needs(self) -> Needs:
        """Token by token; that it reads advantages and sampling is declared on `Grpo`."""
        return Needs(tokens=True)

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest ratio that is not clipped."""
        settings = self.settings
        above = settings.clip if settings.clip_high is None else settings.clip_high
        return 1 - settings.clip, 1 + above

    def __call__(self, logps: PairLogps) -> Tensor:
        """-Σ (s - β k3) / tokens of a completion, mean of both; [pairs]."""
        terms = token_terms(logps)
        ratios = terms.log_ratios.exp()
        clipped = ratios.clamp(*self.bounds)
        surrogate = torch.minimum(ratios * terms.advantages, clipped * terms.advantages)
        objective = surrogate - self.settings.beta * terms.kl
        sums = objective.masked_fill(~terms.mask, 0.0).sum(2)
        divisors = self.settings.divisor or terms.lengths
        return -(sums / divisors).mean(1)

    def figures(self, logps: PairLogps) -> dict[str, Tensor]:
        """KL, ratios and how many of them are clipped; [pairs] each."""
        terms = token_terms(logps)
        ratios = terms.log_ratios.exp()
        lowest, highest = self.bounds
        low = (ratios < lowest) & (terms.advantages < 0)
        high = (ratios > highest) & (terms.advantages > 0)
        values = {
            "kl": terms.kl,
            "clip_ratio/low_mean": low,
            "clip_ratio/high_mean": high,
            "clip_ratio/region_mean": low | high,
            "sampling/importance_sampling_ratio/mean": ratios,
            "sampling/sampling_logp_difference/mean": terms.log_ratios.abs(),
        }
        figures: dict[str, Tensor] = {}
        for name, value in values.items():
            sums = (value * terms.mask).sum(2)
            figures[name] = (sums / terms.lengths).mean(1)
        return figures


def token_terms(logps: PairLogps) -> TokenTerms:
    """Ratios to the sampling policy and k3 of every token."""
    assert logps.advantages is not None, "the update reads them from the pairs"
    assert logps.tokens is not None, "the update fills them for this loss"
    policy, reference, sampling = logps.tokens.unbind(3)
    lengths = torch.stack([logps.chosen_lengths, logps.rejected_lengths], 1)
    columns = torch.arange(policy.shape[2], device=policy.device)
    to_reference = reference - policy
    return TokenTerms(
        log_ratios=policy - sampling,
        kl=to_reference.exp() - to_reference - 1,
        mask=columns < lengths[:, :, None],
        advantages=logps.advantages[:, :, None],
        lengths=lengths,
    )
