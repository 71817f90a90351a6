"""What a loss is: a function of log-probs, and a record of what it needs beside those of the pair's two sides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch.nn.functional as F
from torch import Tensor

from common.config.losses import Loss, SmoothedLoss
from learner.losses.pair_logps import PairLogps

SettingsT = TypeVar("SettingsT", bound=Loss)


@dataclass(frozen=True, slots=True)
class NoisedImage:
    """How the image is noised whose most likely tokens are dispreferred (see `learner/losses/noised_image.py`).

    Args:
        step: of the 1000 steps of the diffusion schedule.
        shared_tokens: whether the reference scores the policy's tokens, not its own.
    """

    step: int
    shared_tokens: bool


@dataclass(frozen=True, slots=True)
class Needs:
    """What a loss reads of `PairLogps` beside the summed log-probs of both sides; the default is nothing.

    Whether it reads the reference or advantages is declared on its settings (`common/config/losses.py`).

    Args:
        crop: smallest and largest share of the image's area to keep; gives `cropped_ratios`.
        changed_tokens: length of the shortest run of equal tokens that counts as unchanged; gives `changed_ratios` and
            `changed_lengths`.
        mean_reward: gives `reward_shift`.
        noised_image: gives `policy_noise` and `ref_noise`.
        plain_rows: the forward must run padded rows, one per completion, not the shared-prompt tree.
        tokens: gives `tokens`, the log-probs of both sides token by token.
        normalised_advantages: `advantages` are divided by their root mean square over the global batch.
    """

    crop: tuple[float, float] | None = None
    changed_tokens: int | None = None
    mean_reward: bool = False
    noised_image: NoisedImage | None = None
    plain_rows: bool = False
    tokens: bool = False
    normalised_advantages: bool = False


@dataclass(frozen=True)
class PairLoss(ABC, Generic[SettingsT]):
    """A loss with its settings. Losses of equal kind and settings are equal."""

    settings: SettingsT

    @property
    def needs(self) -> Needs:
        """What the learner has to prepare."""
        return Needs()

    @abstractmethod
    def __call__(self, logps: PairLogps) -> Tensor:
        """The loss of every pair, [pairs]."""

    def figures(self, logps: PairLogps) -> dict[str, Tensor]:
        """Metrics that only this loss has, by name, [pairs] each; asked without gradients. A batch's is their mean."""
        return {}

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """Implicit rewards of chosen and rejected, β times the log-ratio to the reference, [pairs] each."""
        beta = self.settings.beta
        return beta * logps.chosen_ratios, beta * logps.rejected_ratios


class ReferenceFreeLoss(PairLoss[SettingsT]):
    """A loss that no reference has a part in: a side's reward is its log-prob per token (arXiv 2405.14734 Eq. 4)."""

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """β logp(y) / |y| of chosen and rejected, [pairs] each."""
        beta = self.settings.beta
        chosen = logps.policy_chosen / logps.chosen_lengths
        rejected = logps.policy_rejected / logps.rejected_lengths
        return beta * chosen, beta * rejected


def smoothed_sigmoid(margins: Tensor, settings: SmoothedLoss) -> Tensor:
    """-(1 - e) log σ(margin) - e log σ(-margin), e the label smoothing; [pairs]."""
    smoothing = settings.label_smoothing
    # logsigmoid does not overflow where log(sigmoid) would.
    right = -(1 - smoothing) * F.logsigmoid(margins)
    return right - smoothing * F.logsigmoid(-margins)
