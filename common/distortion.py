"""Diffusion noise on images, as in POVID's second stage (arXiv 2402.11411) and in the `noise` variant of BDHS.

    x_t = √ᾱ_t·x_0 + √(1 - ᾱ_t)·ε      ε ~ N(0, 1)      ᾱ_t = Π_{i ≤ t} (1 - β_i)
    β_i = sigmoid(-6 + 12·i/(T - 1))·(0.005 - 1e-5) + 1e-5      i = 0 … T - 1

At t = 500 of T = 1000, ᾱ ≈ 0.745 and the noise has a standard deviation of 0.505.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image

NUM_STEPS = 1000
_BETA_FIRST, _BETA_LAST = 1e-5, 0.005


def alpha_bar(step: int, num_steps: int = NUM_STEPS) -> float:
    """ᾱ at `step`, counted from 0: the share of the image's variance that is left.

    Raises:
        ValueError: there is no such step.
    """
    if not 0 <= step < num_steps:
        raise ValueError(
            f"step: expected 0 to {num_steps - 1}, got {step}; choose one of them"
        )
    place = torch.linspace(-6, 6, num_steps, dtype=torch.float64)[: step + 1]
    beta = place.sigmoid() * (_BETA_LAST - _BETA_FIRST) + _BETA_FIRST
    return float((1 - beta).prod())


def noise_pixels(
    pixel_values: torch.Tensor, step: int, generator: torch.Generator
) -> torch.Tensor:
    """A processor's pixel tensor with noise, any shape, same dtype and device; not clamped, it has no bounds.

    The draw is float32 on the generator's device, so a CPU generator gives the same noise on every device.
    """
    noise = torch.randn(
        pixel_values.shape, generator=generator, device=generator.device
    )
    return _mix(pixel_values.float(), noise.to(pixel_values.device), step).to(
        pixel_values.dtype
    )


def noise_image(
    image: Image.Image, step: int, seed: int, side: int | None = None
) -> Image.Image:
    """An RGB image with noise on its pixels in [-1, 1], clamped there (uint8 arithmetic would wrap around).

    `side` is the image side the model works at: where the image is larger, a draw covers a square of pixels that
    shrinks to one of the model's. Noise per pixel would be averaged away by the processor's resizing.
    """
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).float() / 127.5 - 1
    height, width, _ = pixels.shape
    cell = max(1, round(min(height, width) / side)) if side else 1
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(
        (math.ceil(height / cell), math.ceil(width / cell), 3), generator=generator
    )
    noise = draws.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[:height, :width]
    noised = _mix(pixels, noise, step).clamp(-1, 1)
    return Image.fromarray(((noised + 1) * 127.5).round().to(torch.uint8).numpy())


def _mix(pixels: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
    share = alpha_bar(step)
    return math.sqrt(share) * pixels + math.sqrt(1 - share) * noise
