"""POVID's second stage (arXiv 2402.11411): half of DPO is against what the policy says of a noised image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from common.config.losses import Povid
from learner.losses.base import Needs, NoisedImage, PairLoss
from learner.losses.pair_logps import PairLogps


class PovidLoss(PairLoss[Povid]):
    """DPO against the tokens of the noised image and against the rejected text, half each; see `noised_image.py`."""

    @property
    def needs(self) -> Needs:
        """Log-probs of the noised image's tokens, at the positions of the chosen side."""
        settings = self.settings
        noised_image = NoisedImage(settings.noise_step, settings.shared_tokens)
        # Only the plain forward has a row for each chosen answer; a tree may share one between pairs.
        return Needs(noised_image=noised_image, plain_rows=True)

    def __call__(self, logps: PairLogps) -> Tensor:
        """-½ log σ(β (r+ - r_n)) - ½ log σ(β delta), r_n the log-ratio of the noised image's tokens; [pairs]."""
        assert logps.policy_noise is not None, "the update noises the images"
        assert logps.ref_noise is not None, "the update noises the images"
        beta = self.settings.beta
        noise_ratios = logps.policy_noise - logps.ref_noise
        noise_margins = beta * (logps.chosen_ratios - noise_ratios)
        text_margins = beta * logps.delta
        against_noise = F.logsigmoid(noise_margins)
        against_text = F.logsigmoid(text_margins)
        return -0.5 * against_noise - 0.5 * against_text
