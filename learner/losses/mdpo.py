"""mDPO (arXiv 2406.11839): DPO that also prefers the whole image to a crop of it (see `learner/batch/crops.py`)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from common.config.losses import Mdpo
from learner.losses.base import Needs, PairLoss
from learner.losses.pair_logps import PairLogps


class MdpoLoss(PairLoss[Mdpo]):
    """The chosen side must be likelier than the rejected one, than itself behind the crop, and than in the reference.

    A prompt without an image is its own crop: its image term is log 2 and teaches nothing.
    """

    @property
    def needs(self) -> Needs:
        """Log-ratios of the chosen side behind a crop."""
        return Needs(crop=self.settings.crop)

    def __call__(self, logps: PairLogps) -> Tensor:
        """-log σ(β delta) - a log σ(β (r+ - r+(m'))) - b log σ(β r+), m' the crop; [pairs]."""
        assert logps.cropped_ratios is not None, "the collator adds the crops' rows"
        beta = self.settings.beta
        chosen = logps.chosen_ratios
        over_crop = chosen - logps.cropped_ratios
        text = -F.logsigmoid(beta * logps.delta)
        image = -F.logsigmoid(beta * over_crop)
        anchor = -F.logsigmoid(beta * chosen)
        weighted_image = self.settings.image_weight * image
        weighted_anchor = self.settings.anchor_weight * anchor
        return text + weighted_image + weighted_anchor
