"""POVID's second stage (arXiv 2402.11411): what the policy would say of a noised image is dispreferred, token by token.

    chosen sequence, image noised  ── policy ──▶  arg-max token of every completion position: y-_noise
    chosen sequence, image clean   ── policy, reference ──▶  log-probs of y+, and of y-_noise at the same positions

Each token of y-_noise has the *chosen* tokens before it, so the clean forward that training makes anyway also gives
its log-prob. In the published code the reference finds tokens of its own, so that log-probs of different tokens are
compared; here both score the policy's, or with `povid_shared_indices` off, as published. Its noise is not clamped;
here pixels stay in their range. A prompt without an image is its own noised one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.chat import ChatEncoder
from common.config import Loss
from common.distortion import noise_pixels
from common.seeding import derive_seed
from learner.collate import Collator, EncodedPair, RowBatch
from learner.logps import CompletionLogps
from learner.objective import Objective

PIXELS = "pixel_values"


class Dispreferred(NamedTuple):
    """Tokens of y-_noise for each model, [rows, response columns]; those of chosen rows count, others are 0.

    None when no loss asks for them.
    """

    policy: Tensor | None
    reference: Tensor | None


class Povid:
    """Finds y-_noise for the pairs of one global batch.

    Args:
        encoder: its image processor says how pixels were normalised.
        losses: those of the global batch, so that all ranks run the same forwards.
        seed: of this batch; each pair's noise is drawn from it and the pair's id.
    """

    def __init__(self, encoder: ChatEncoder, losses: Iterable[Loss], seed: int) -> None:
        self._range = pixel_range(encoder.processor.image_processor)
        self._reference_differs = any(
            loss.kind == "povid" and not loss.povid_shared_indices for loss in losses
        )
        self._seed = seed

    @torch.no_grad()
    def dispreferred(
        self,
        pairs: Sequence[EncodedPair],
        batch: RowBatch,
        collator: Collator,
        objective: Objective,
        policy: nn.Module,
        reference: Callable[..., CompletionLogps],
    ) -> Dispreferred:
        """y-_noise of a micro-batch, laid out for `batch`, the collated `pairs`."""
        losses = [objective.loss(pair.pair) for pair in pairs]
        noised = [
            self.noised(pair, loss.povid_noise_step)
            for pair, loss in zip(pairs, losses, strict=True)
        ]
        rows = collator.collate_chosen(noised).like(batch)
        policy.eval()  # no dropout: the tokens are the policy's, not a draw's
        tokens = _best_tokens(policy(rows, best=True))
        policy.train()
        others = tokens
        if self._reference_differs:
            shared = torch.tensor(
                [loss.povid_shared_indices for loss in losses], device=tokens.device
            )
            others = torch.where(
                shared[:, None], tokens, _best_tokens(reference(rows, best=True))
            )
        width = int(batch.response_mask.sum(1).max()) - tokens.shape[1]
        height = len(batch.response_mask) - len(pairs)
        return Dispreferred(
            *(F.pad(each, (0, width, 0, height)) for each in (tokens, others))
        )

    def noised(self, pair: EncodedPair, noise_step: int) -> EncodedPair:
        """The pair with x_t in place of its image's pixels."""
        inputs = pair.prompt.model_inputs
        if PIXELS not in inputs:
            return pair
        generator = torch.Generator().manual_seed(derive_seed(self._seed, pair.pair.id))
        pixels = clamp_pixels(
            noise_pixels(inputs[PIXELS], noise_step, generator), *self._range
        )
        return replace(
            pair, prompt=replace(pair.prompt, model_inputs={**inputs, PIXELS: pixels})
        )


def _best_tokens(logps: CompletionLogps) -> Tensor:
    assert logps.best is not None
    return logps.best


def pixel_range(image_processor: Any) -> tuple[Tensor, Tensor]:
    """What black and white become in each channel, [3] each, after the processor's rescaling and normalisation."""
    if not image_processor.do_normalize:
        return torch.zeros(3), torch.ones(3)
    mean, std = (
        torch.tensor(list(getattr(image_processor, name)))
        for name in ("image_mean", "image_std")
    )
    return (0 - mean) / std, (1 - mean) / std


def clamp_pixels(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Pixels within `low` and `high` of their channel: [..., 3, height, width], or flat patches [patches, 3 · any]."""
    if pixels.ndim == 2:
        return clamp_pixels(pixels.unflatten(1, (3, 1, -1)), low, high).flatten(1)
    shape = (3, 1, 1)
    return pixels.clamp(low.view(shape).to(pixels), high.view(shape).to(pixels))
