"""Folders in shared memory through which weights reach an engine: gone after use, and swept up if their owner died."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import UserError
from common.protocols import Tensors

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "sightline-"
_YOUNG_S = 60.0


def check_room(tensors: Tensors) -> None:
    """UserError when shared memory is too small for the tensors."""
    num_bytes, free = (
        sum(array.nbytes for array in tensors.values()),
        shutil.disk_usage(SHARED_MEMORY).free,
    )
    if num_bytes > free:
        raise UserError(
            f"{SHARED_MEMORY}: expected {num_bytes >> 20} MiB free for a weight push, got {free >> 20} MiB; enlarge it "
            "(docker: --shm-size)"
        )


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder for this user only, locked as long as its owner lives."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY, prefix=_PREFIX) as name:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def sweep() -> int:
    """Remove what killed processes of this user left, a whole model each; returns how many folders.

    A lock ends with its process, in another container too. A folder of this minute may not be locked yet.
    """
    num_removed = 0
    for folder in SHARED_MEMORY.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < _YOUNG_S:
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                num_removed += 1
            finally:
                os.close(descriptor)
    return num_removed
