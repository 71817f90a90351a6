"""Tells pictures apart without decoding them: a 63-bit number of the size and both ends of the file.

Two names of one picture get one key. Two pictures may get one as well, if all of that is the same: whoever keeps equal
keys on one side keeps a picture on one side.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

END_BYTES = 4096
"""How much of either end is read."""


def key_of_bytes(data: bytes) -> int:
    """The key of an encoded picture."""
    return _key(len(data), data[:END_BYTES], data[-END_BYTES:])


def key_of_file(path: Path) -> int:
    """The key of the picture in a file (OSError when it cannot be read)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        start = os.pread(descriptor, END_BYTES, 0)
        end = os.pread(descriptor, END_BYTES, max(0, size - END_BYTES))
    finally:
        os.close(descriptor)
    return _key(size, start, end)


def key_of_name(name: str) -> int:
    """A key for a picture that cannot be read."""
    return _key(-1, name.encode("utf-8", "replace"), b"")


def _key(size: int, start: bytes, end: bytes) -> int:
    digest = blake2b(start, digest_size=8)
    digest.update(end)
    digest.update(str(size).encode())
    # One bit less, so that it fits into a signed number of 64 bits.
    return int.from_bytes(digest.digest(), "big") >> 1
