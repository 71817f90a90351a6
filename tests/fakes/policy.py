"""The fake policy: its tokens, the log-probs it gives them, the checksum of its weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.protocols import Tensors
from common.records import Prompt
from common.seeding import derive_seed

BOS, EOS, IMAGE_TOKEN = 1, 2, 4


def text_ids(text: str) -> tuple[int, ...]:
    """One token per byte, after the special ones."""
    return tuple(10 + byte for byte in text.encode())


def fake_logprobs(
    prompt: Prompt, token_ids: Sequence[int], weight: float
) -> tuple[float, ...]:
    """A log-prob per token that depends on the images, on the weights and on the token."""
    hashes = [image.sha256 for image in prompt.images]
    of_images = derive_seed(*hashes) % 1000 / 1000
    return tuple(-1.0 - of_images - weight - token / 1000 for token in token_ids)


def fake_checksum(tensors: Tensors) -> str:
    parts = []
    for name in sorted(tensors):
        values = np.asarray(tensors[name]).tolist()
        parts.append(f"{name}{values}")
    return str(derive_seed(*parts))
