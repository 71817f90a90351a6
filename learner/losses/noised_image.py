"""POVID's second stage (arXiv 2402.11411): what the policy would say of a noised image is dispreferred, token by token.

    chosen sequence, image noised  ── policy ──▶  arg-max token of every completion position: y-_noise
    chosen sequence, image clean   ── policy, reference ──▶  log-probs of y+, and of y-_noise at the same positions

Each token of y-_noise has the *chosen* tokens before it, so the clean forward that training makes anyway also gives
its log-prob. In the published code the reference finds tokens of its own, so that log-probs of different tokens are
compared; here both score the policy's, or with `shared_tokens` off, as published. Its noise is not clamped; here pixels
stay in their range. A prompt without an image is its own noised one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.diffusion_noise import noise_pixels
from common.seeding import derive_seed
from learner.batch.collate import EncodedPair, RowBatch
from learner.forward.logps import CompletionLogps
from learner.losses import make_loss
from learner.losses.objective import Objective
from learner.model.models import Models

PIXELS = "pixel_values"


class NoisedImageTokens(NamedTuple):
    """y-_noise for each model, [rows, response columns]: tokens in chosen rows, 0 in all others.

    None when no loss needs them.
    """

    policy: Tensor | None
    reference: Tensor | None


class NoisedImages:
    """Finds y-_noise for the pairs of one global batch.

    Args:
        models: the collator's image processor says how pixels were normalised.
        objective: of the global batch, so that all ranks run the same forwards.
        seed: of this batch; each pair's noise is drawn from it and the pair's id.
    """

    def __init__(self, models: Models, objective: Objective, seed: int) -> None:
        self._models = models
        self._objective = objective
        self._seed = seed
        processor = models.collator.encoder.processor
        self._range = pixel_range(processor.image_processor)
        self._reference_differs = False
        for loss in objective.losses:
            need = make_loss(loss).needs.noised_image
            if need is not None and not need.shared_tokens:
                self._reference_differs = True

    @torch.no_grad()
    def tokens(
        self,
        pairs: Sequence[EncodedPair],
        batch: RowBatch,
    ) -> NoisedImageTokens:
        """y-_noise of a micro-batch, laid out as `batch`, the collated `pairs`.

        Pairs of other losses take part with their clean image; their tokens are not read.
        """
        noised: list[EncodedPair] = []
        shared: list[bool] = []
        for pair in pairs:
            need = self._objective.needs(pair.pair).noised_image
            if need is None:
                noised.append(pair)
                shared.append(True)
            else:
                noised.append(self.noised(pair, need.step))
                shared.append(need.shared_tokens)
        models = self._models
        # y-_noise follows the chosen tokens, so the chosen rows are all it takes.
        rows = models.collator.collate_chosen(noised)
        rows = rows.to(models.device, models.dtype)
        policy = models.engine.module
        # Without dropout: the policy's most likely tokens, not a draw's.
        policy.eval()
        policy_tokens = _best_tokens(policy(rows, best=True))
        policy.train()
        reference_tokens = policy_tokens
        # Decided by the global batch: with ZeRO-3 all ranks must run the reference, or none.
        if self._reference_differs:
            best_of_reference = _best_tokens(models.reference(rows, best=True))
            # [pairs, 1]
            is_shared = torch.tensor(shared, device=policy_tokens.device)[:, None]
            reference_tokens = torch.where(is_shared, policy_tokens, best_of_reference)
        return NoisedImageTokens(
            policy=_laid_out(policy_tokens, batch),
            reference=_laid_out(reference_tokens, batch),
        )

    def noised(self, pair: EncodedPair, noise_step: int) -> EncodedPair:
        """The pair with x_t in place of its image's pixels."""
        inputs = pair.prompt.model_inputs
        if PIXELS not in inputs:
            return pair
        seed = derive_seed(self._seed, pair.pair.id)
        generator = torch.Generator().manual_seed(seed)
        # A new tensor: the prompt cache keeps the clean pixels.
        pixels = noise_pixels(inputs[PIXELS], noise_step, generator)
        low, high = self._range
        pixels = clamp_pixels(pixels, low, high)
        noised_inputs = {**inputs, PIXELS: pixels}
        prompt = replace(pair.prompt, model_inputs=noised_inputs)
        return replace(pair, prompt=prompt)


def _best_tokens(logps: CompletionLogps) -> Tensor:
    assert logps.best is not None
    return logps.best


def _laid_out(tokens: Tensor, batch: RowBatch) -> Tensor:
    """Pad tokens of the chosen rows to all rows and response columns of a batch."""
    num_rows = len(batch.response_mask)
    num_columns = int(batch.response_mask.sum(1).max())
    below = num_rows - tokens.shape[0]
    right = num_columns - tokens.shape[1]
    return F.pad(tokens, (0, right, 0, below))


def pixel_range(image_processor: Any) -> tuple[Tensor, Tensor]:
    """What black and white become in each channel, [3] each, after the processor's rescaling and normalisation."""
    if not image_processor.do_normalize:
        return torch.zeros(3), torch.ones(3)
    mean = torch.tensor(list(image_processor.image_mean))
    std = torch.tensor(list(image_processor.image_std))
    # After rescaling black is 0 and white is 1.
    black = (0 - mean) / std
    white = (1 - mean) / std
    return black, white


def clamp_pixels(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Pixels within `low` and `high` of their channel: [..., 3, height, width], or flat patches [patches, 3 · any]."""
    if pixels.ndim == 2:
        # Qwen's processors give patches whose values are ordered by channel first.
        by_channel = pixels.unflatten(1, (3, 1, -1))
        clamped = clamp_pixels(by_channel, low, high)
        return clamped.flatten(1)
    channel_low = low.view(3, 1, 1).to(pixels)
    channel_high = high.view(3, 1, 1).to(pixels)
    return pixels.clamp(channel_low, channel_high)
