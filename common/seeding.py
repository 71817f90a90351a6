"""Seeds derived by name, so that no two uses share a random stream and a resumed run draws the same numbers."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: str | int) -> int:
    """A 31-bit seed from the run's seed and a name, equal on every machine: `derive_seed(7, "mixture", step)`."""
    # A separator that no name contains, so that ("a", "bc") and ("ab", "c") give different seeds.
    name = "\x1f".join(map(str, parts))
    digest = hashlib.sha256(name.encode()).digest()
    number = int.from_bytes(digest[:4], "big")
    # 31 bits: a seed must fit into a signed 32-bit integer.
    return number >> 1
