"""The state of every generator that a rank draws from, as tensors: torch's on CPU and GPUs, numpy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

GAUSS = "gauss"
"""Names of the numbers that both numpy and Python keep of a pair of normal ones: [] or [1 number]."""


def random_state() -> dict[str, Tensor]:
    """The state now, by generator."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        for device, of_device in enumerate(torch.cuda.get_rng_state_all()):
            state[f"cuda/{device}"] = of_device
    _, words, gauss = random.getstate()
    state["python"] = torch.tensor(words, dtype=torch.int64)
    state[f"python/{GAUSS}"] = _as_tensor(gauss)
    legacy: Any = np.random.get_state(legacy=True)
    _, key, position, has_gauss, cached = legacy
    state["numpy"] = torch.tensor([*key.tolist(), position], dtype=torch.int64)
    state[f"numpy/{GAUSS}"] = _as_tensor(cached if has_gauss else None)
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Go on from a state. GPUs that it does not know keep theirs."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            of_device = state.get(f"cuda/{device}")
            if of_device is not None:
                torch.cuda.set_rng_state(of_device, device)
    version = random.getstate()[0]
    words = tuple(state["python"].tolist())
    random.setstate((version, words, _as_number(state[f"python/{GAUSS}"])))
    *key, position = state["numpy"].tolist()
    gauss = _as_number(state[f"numpy/{GAUSS}"])
    numbers = np.array(key, dtype=np.uint32)
    np.random.set_state(
        ("MT19937", numbers, position, int(gauss is not None), gauss or 0.0)
    )


def seed_all(seed: int) -> None:
    """Begin all generators from a seed."""
    torch.manual_seed(seed)
    random.seed(seed)
    # numpy takes 32 bits.
    np.random.seed(seed % (1 << 32))


def _as_tensor(number: float | None) -> Tensor:
    numbers = [] if number is None else [number]
    return torch.tensor(numbers, dtype=torch.float64)


def _as_number(tensor: Tensor) -> float | None:
    numbers = tensor.tolist()
    return numbers[0] if numbers else None
