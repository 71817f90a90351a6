"""RLOO (arXiv 2402.14740): a policy gradient on leave-one-out advantages (see `reward/rloo.py`)."""

from __future__ import annotations

from torch import Tensor

from common.config.losses import Rloo
from learner.losses.base import Needs, PairLoss
from learner.losses.pair_logps import PairLogps


class RlooLoss(PairLoss[Rloo]):
    """Policy gradient with a KL penalty, for both completions of a pair.

    With kl_i = logp_i - logp_ref_i in the reward and the partner's as its baseline, the penalty's gradient is
    ½ β [(kl+ - kl-) ∇logp+ + (kl- - kl+) ∇logp-] = ∇ ¼ β delta², an unbiased estimate of β ∇KL(policy || reference).
    """

    @property
    def needs(self) -> Needs:
        """Whether its advantages are normalised; that it reads any is declared on `Rloo`."""
        return Needs(normalised_advantages=self.settings.normalise)

    def __call__(self, logps: PairLogps) -> Tensor:
        """-½ (A+ logp(y+) + A- logp(y-)) + ¼ β delta²; [pairs]."""
        assert logps.advantages is not None, "the update reads them from the pairs"
        chosen_advantage, rejected_advantage = logps.advantages.unbind(1)
        chosen = chosen_advantage * logps.policy_chosen
        rejected = rejected_advantage * logps.policy_rejected
        penalty = 0.25 * self.settings.beta * logps.delta**2
        return penalty - 0.5 * (chosen + rejected)
