"""Diffusion noise: the schedule by hand, the noise's spread, clamping, seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.diffusion_noise import alpha_bar, noise_image, noise_pixels


def test_schedule_by_hand() -> None:
    """sigmoid(-6) = 0.0024726, so β_0 = 0.0024726·0.00499 + 1e-5 = 2.2338e-5 and ᾱ_0 = 0.99997766.

    Of three steps at -6, 0, 6: β_1 = 0.5·0.00499 + 1e-5 = 0.002505, and β_0 + β_2 = 0.00499 + 2e-5 = 0.00501.
    """
    first = 2.2338e-5
    second = 0.002505
    third = 0.00501 - first
    assert alpha_bar(0) == pytest.approx(1 - first, abs=1e-9)
    of_three_steps = (1 - first) * (1 - second) * (1 - third)
    assert alpha_bar(2, num_steps=3) == pytest.approx(of_three_steps, abs=1e-8)
    assert alpha_bar(500) == pytest.approx(0.745, abs=5e-4)
    spread = math.sqrt(1 - alpha_bar(500))
    assert spread == pytest.approx(0.505, abs=5e-4)
    assert alpha_bar(0) > alpha_bar(250) > alpha_bar(500) > alpha_bar(999)
    for step in (-1, 1000):
        with pytest.raises(ValueError, match="0 to 999"):
            alpha_bar(step)


def test_pixel_noise_has_the_schedules_share_and_spread() -> None:
    pixels = torch.full((2, 3, 128, 128), 1.5, dtype=torch.float64)

    def noised_by(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return noise_pixels(pixels, 500, generator)

    noised = noised_by(0)
    assert noised.dtype == pixels.dtype
    assert noised.shape == pixels.shape
    expected_mean = 1.5 * math.sqrt(0.745)
    assert noised.mean().item() == pytest.approx(expected_mean, abs=0.01)
    assert noised.std().item() == pytest.approx(0.505, abs=0.01)
    assert torch.equal(noised, noised_by(0))
    assert not torch.equal(noised, noised_by(1))


def test_grey_gets_the_noise_and_white_does_not_wrap_around() -> None:
    """0.505 in [-1, 1] is 64 of 255 levels; clamping at ± 1, two sigma from grey, takes a little of it."""
    grey_image = Image.new("RGB", (96, 64), (128, 128, 128))
    grey = np.array(noise_image(grey_image, 500, seed=3)).astype(float)
    assert grey.shape == (64, 96, 3)
    assert grey.mean() == pytest.approx(127.5, abs=2)
    assert grey.std() == pytest.approx(0.505 * 127.5, rel=0.05)
    white_image = Image.new("RGB", (64, 64), "white")
    white = np.array(noise_image(white_image, 100, seed=3))
    assert white.min() > 180
    assert (white == 255).mean() > 0.3


def test_an_image_is_noised_by_its_seed_alone() -> None:
    image = Image.new("RGB", (20, 30), "red")
    noised = np.array(noise_image(image, 500, seed=1))
    again = np.array(noise_image(image, 500, seed=1))
    other = np.array(noise_image(image, 500, seed=2))
    assert (noised == again).all()
    assert (noised != other).any()


def test_noise_survives_the_processors_shrinking() -> None:
    """Averaging 4 x 4 pixels divides the spread of independent noise by 4; that of one draw per 4 x 4 stays."""
    grey = Image.new("RGB", (256, 256), (128, 128, 128))

    def spread(side: int | None) -> float:
        noised = noise_image(grey, 300, 0, side)
        shrunk = noised.resize((64, 64), Image.Resampling.BOX)
        return float(np.array(shrunk).std())

    whole = math.sqrt(1 - alpha_bar(300)) * 127.5
    assert spread(64) == pytest.approx(whole, rel=0.05)
    assert spread(None) == pytest.approx(whole / 4, rel=0.05)
