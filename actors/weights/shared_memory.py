"""Folders in shared memory through which weights reach an engine.

A folder is removed after use. If its owner was killed, the next engine of this user removes it.
"""

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
    """Raise a UserError when shared memory is too small for the tensors."""
    num_bytes = sum(array.nbytes for array in tensors.values())
    num_free = shutil.disk_usage(SHARED_MEMORY).free
    if num_bytes > num_free:
        raise UserError(
            f"{SHARED_MEMORY}: expected {num_bytes >> 20} MiB free for a weight push, got {num_free >> 20} MiB; "
            "enlarge it (docker: --shm-size)"
        )


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder that only this user can read, locked as long as its owner lives."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY, prefix=_PREFIX) as name:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            # Released by the kernel when this process ends, however it ends.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def sweep() -> int:
    """Remove the folders that killed processes of this user left behind, and return how many there were.

    Each may hold a whole model. A lock ends with the process that holds it, even one in another container.
    """
    num_removed = 0
    for folder in SHARED_MEMORY.glob(f"{_PREFIX}*"):
        # Locked by a living owner, another user's, or just removed by somebody else.
        with suppress(OSError):
            # Its owner may have created a young folder without having locked it yet.
            age_s = time.time() - folder.stat().st_mtime
            if age_s < _YOUNG_S:
                continue
            # Not through a link: the folder is removed with all that is in it.
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            descriptor = os.open(folder, flags)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                num_removed += 1
            finally:
                os.close(descriptor)
    return num_removed
