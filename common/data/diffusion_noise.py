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
_BETA_FIRST = 1e-5
_BETA_LAST = 0.005
"""The limits of the noise schedule, as in POVID's code."""


def alpha_bar(step: int, num_steps: int = NUM_STEPS) -> float:
    """ᾱ at `step`, counted from 0: the share of the image's variance that is left.

    Raises:
        ValueError: `step` is not one of 0 … num_steps - 1.
    """
    if not 0 <= step < num_steps:
        raise ValueError(
            f"step: expected 0 to {num_steps - 1}, got {step}; choose one of them"
        )
    points = torch.linspace(-6, 6, num_steps, dtype=torch.float64)
    shares = points[: step + 1].sigmoid()
    betas = shares * (_BETA_LAST - _BETA_FIRST) + _BETA_FIRST
    kept = 1 - betas
    return float(kept.prod())


def noise_pixels(
    pixel_values: torch.Tensor,
    step: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Add noise to a processor's pixel tensor of any shape. Its dtype and device stay, values are not clamped.

    The noise is drawn in float32 on the generator's device, so a CPU generator gives the same noise for every device.
    """
    noise = torch.randn(
        pixel_values.shape,
        generator=generator,
        device=generator.device,
    )
    noise = noise.to(pixel_values.device)
    noised = _mix(pixel_values.float(), noise, step)
    return noised.to(pixel_values.dtype)


def noise_image(
    image: Image.Image,
    step: int,
    seed: int,
    side: int | None = None,
) -> Image.Image:
    """Add noise to an RGB image. Pixel values are scaled to [-1, 1] for it, and clamped to that range after it.

    Args:
        image: in any mode; it is converted to RGB.
        step: of the diffusion, 0 to 999.
        seed: of the noise.
        side: the image side (pixels) that the model works at. In a larger image, one random value covers the square of
            pixels that the processor shrinks to one. Otherwise resizing would average the noise away.
    """
    levels = np.array(image.convert("RGB"))
    pixels = torch.from_numpy(levels).float() / 127.5 - 1
    height, width, num_channels = pixels.shape
    # Pixels of a square with one random value per channel.
    square = 1
    if side:
        square = max(1, round(min(height, width) / side))
    num_rows = math.ceil(height / square)
    num_columns = math.ceil(width / square)
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rows, num_columns, num_channels)
    noise = torch.randn(shape, generator=generator)
    noise = noise.repeat_interleave(square, 0)
    noise = noise.repeat_interleave(square, 1)
    # Squares at the right and lower edge may reach beyond the image.
    noised = _mix(pixels, noise[:height, :width], step)
    # Unclamped values would wrap around in uint8.
    noised_levels = (noised.clamp(-1, 1) + 1) * 127.5
    rounded = noised_levels.round().to(torch.uint8)
    return Image.fromarray(rounded.numpy())


def _mix(pixels: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
    """x_t of the formula above."""
    kept = alpha_bar(step)
    return math.sqrt(kept) * pixels + math.sqrt(1 - kept) * noise
