"""Seeds derived by name, so that no two uses share a random stream and a resumed run draws the same numbers."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: str | int) -> int:
    """A 31-bit seed from the run's seed and a name, equal on every machine: `derive_seed(7, "mixture", step)`."""
    name = "\x1f".join(str(part) for part in parts)
    digest = hashlib.sha256(name.encode()).digest()
    # 31 bits: a seed must fit into a signed 32-bit integer.
    return int.from_bytes(digest[:4], "big") >> 1
