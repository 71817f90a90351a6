"""MPO (arXiv 2411.10442): a mixture of a preference, a quality and a generation loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from common.config.losses import Mpo
from learner.losses.base import Needs, PairLoss, smoothed_sigmoid
from learner.losses.pair_logps import PairLogps


class MpoLoss(PairLoss[Mpo]):
    """Which side is better (sigmoid), whether each side is good (BCO), and how to write the chosen one (NLL)."""

    @property
    def needs(self) -> Needs:
        """The mean reward of earlier steps, δ (see `learner/losses/reward_shift.py`)."""
        return Needs(mean_reward=True)

    def __call__(self, logps: PairLogps) -> Tensor:
        """a sigmoid - b (log σ(β r+ - δ) + log σ(-(β r- - δ))) - c logp(y+) / |y+|; [pairs]."""
        assert logps.reward_shift is not None, "the update gives the mean reward"
        settings = self.settings
        margins = settings.beta * logps.delta
        preference = smoothed_sigmoid(margins, settings)
        # BCO: each side for itself is above or below the mean reward.
        chosen_reward, rejected_reward = self.rewards(logps)
        chosen = chosen_reward - logps.reward_shift
        rejected = rejected_reward - logps.reward_shift
        log_chosen_good = F.logsigmoid(chosen)
        log_rejected_bad = F.logsigmoid(-rejected)
        quality = -log_chosen_good - log_rejected_bad
        generation = -logps.policy_chosen / logps.chosen_lengths
        weighted_preference = settings.preference_weight * preference
        weighted_quality = settings.quality_weight * quality
        weighted_generation = settings.generation_weight * generation
        return weighted_preference + weighted_quality + weighted_generation
