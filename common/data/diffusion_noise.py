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
        ValueError: `step` is not one of 0 … num_steps - 1.
    """
    if not 0 <= step < num_steps:
        raise ValueError(
            f"step: expected 0 to {num_steps - 1}, got {step}; choose one of them"
        )
    points = torch.linspace(-6, 6, num_steps, dtype=torch.float64)[: step + 1]
    betas = points.sigmoid() * (_BETA_LAST - _BETA_FIRST) + _BETA_FIRST
    return float((1 - betas).prod())


def noise_pixels(
    pixel_values: torch.Tensor,
    step: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Add noise to a processor's pixel tensor of any shape; dtype and device stay, values are not clamped.

    The noise is drawn in float32 on the generator's device, so a CPU generator gives the same on every device.
    """
    noise = torch.randn(
        pixel_values.shape,
        generator=generator,
        device=generator.device,
    )
    noised = _mix(pixel_values.float(), noise.to(pixel_values.device), step)
    return noised.to(pixel_values.dtype)


def noise_image(
    image: Image.Image,
    step: int,
    seed: int,
    side: int | None = None,
) -> Image.Image:
    """Add noise to an RGB image, on pixel values in [-1, 1] and clamped there.

    Args:
        side: the image side (pixels) the model works at. Where the image is larger, one draw covers the square of
            pixels that the processor shrinks to one: noise per pixel would be averaged away by the resizing.
    """
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).float() / 127.5 - 1
    height, width, _ = pixels.shape
    cell = 1
    if side:
        cell = max(1, round(min(height, width) / side))
    num_rows = math.ceil(height / cell)
    num_columns = math.ceil(width / cell)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn((num_rows, num_columns, 3), generator=generator)
    noise = draws.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    noised = _mix(pixels, noise[:height, :width], step)
    # Unclamped values would wrap around in uint8.
    levels = (noised.clamp(-1, 1) + 1) * 127.5
    return Image.fromarray(levels.round().to(torch.uint8).numpy())


def _mix(pixels: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
    """x_t of the formula above."""
    kept = alpha_bar(step)
    return math.sqrt(kept) * pixels + math.sqrt(1 - kept) * noise
