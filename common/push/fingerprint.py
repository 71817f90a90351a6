"""A fast fingerprint of weights, the same on a CPU and a GPU.

SHA-256 over every byte would take a second per GB. Here sums of neighbouring words are hashed in the place of the
words: they find any flipped bit and any block of bytes that is missing, stale, or at another place. This guards against
faults, not against somebody who wants to deceive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from common.push.plan import TensorSpec

SIZE = 32
"""Bytes of a fingerprint."""
_WORD = 8
_WORDS_PER_SUM = 64


def fingerprint(values: Tensor) -> bytes:
    """Of the bytes of a contiguous tensor that begins at a multiple of 8 bytes."""
    flat = values.detach().reshape(-1).view(torch.uint8)
    block = _WORD * _WORDS_PER_SUM
    num_sums = flat.numel() // block
    whole = num_sums * block
    words = flat[:whole].view(torch.int64).view(num_sums, _WORDS_PER_SUM)
    # Integers overflow alike on all devices, in whatever order they are added.
    sums = words.sum(1)
    digest = hashlib.sha256()
    digest.update(_bytes_of(sums))
    digest.update(_bytes_of(flat[whole:]))
    return digest.digest()


def fingerprint_of_all(tensors: Iterable[tuple[TensorSpec, bytes]]) -> str:
    """Of tensors with their fingerprints, in whatever order they come; 64 hexadecimal digits."""
    lines = []
    for spec, digest in tensors:
        lines.append(f"{spec.name}\x1f{spec.dtype}\x1f{spec.shape}\x1f{digest.hex()}")
    text = "\x1e".join(sorted(lines))
    return hashlib.sha256(text.encode()).hexdigest()


def _bytes_of(values: Tensor) -> bytes:
    return values.cpu().numpy().tobytes()
