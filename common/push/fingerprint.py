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

from common.push.plan import BLOCK, TensorSpec

SIZE = 32
"""Bytes of a fingerprint."""
_WORD = 8


def fingerprint(values: Tensor) -> bytes:
    """Of the bytes of a contiguous tensor that begins at a multiple of 8 bytes."""
    digest = Digest()
    digest.add(values)
    return digest.value


class Digest:
    """A fingerprint that is taken part by part. All parts but the last have whole blocks."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    @property
    def value(self) -> bytes:
        """Of all parts so far."""
        return self._hash.digest()

    def add(self, values: Tensor) -> None:
        """Go on with the bytes of a contiguous tensor that begins at a multiple of 8 bytes."""
        flat = values.detach().reshape(-1).view(torch.uint8)
        num_sums = flat.numel() // BLOCK
        whole = num_sums * BLOCK
        words = flat[:whole].view(torch.int64).view(num_sums, BLOCK // _WORD)
        # Integers overflow alike on all devices, in whatever order they are added.
        sums = words.sum(1)
        self._hash.update(_bytes_of(sums))
        self._hash.update(_bytes_of(flat[whole:]))


def fingerprint_of_all(tensors: Iterable[tuple[TensorSpec, bytes]]) -> str:
    """Of tensors with their fingerprints, in whatever order they come; 64 hexadecimal digits."""
    lines = []
    for spec, digest in tensors:
        lines.append(f"{spec.name}\x1f{spec.dtype}\x1f{spec.shape}\x1f{digest.hex()}")
    text = "\x1e".join(sorted(lines))
    return hashlib.sha256(text.encode()).hexdigest()


def _bytes_of(values: Tensor) -> bytes:
    return values.cpu().numpy().tobytes()
