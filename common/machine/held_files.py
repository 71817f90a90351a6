"""Files in shared memory that other libraries make, and that nobody removes once their processes are killed.

    psm_…         of Python's `shared_memory`: vLLM's rings between the processes of a split engine, 160 MB each
    sem.mp-…      of Python's `multiprocessing`
    vllm_dist_…   of vLLM's groups of processes on CPUs

Python has a process that removes them, unless it is killed as well: with the whole session, or with the family of a
worker that is replaced. So a worker writes down what its processes hold, in a file that it has locked. The kernel
releases the lock when the worker ends, however it ends. `sweep_held` then removes what is written there.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
"""Read as an attribute of this module wherever another folder may stand in for it, as in tests."""
PREFIXES = ("psm_", "sem.mp-", "vllm_dist_")
_SUFFIX = ".held"
_NO_LINKS = os.O_RDWR | os.O_NOFOLLOW


class HeldFiles:
    """What the processes of one worker hold; the worker's own process makes it, and keeps it."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._descriptor: int | None = None

    def note(self, pids: Iterable[int]) -> None:
        """Write down the files of these processes that are not written down yet; what fails is tried the next time."""
        new = held_by(pids) - self._names
        if not new:
            return
        with suppress(OSError):
            if self._descriptor is None:
                self._descriptor = _locked_list()
            lines = "".join(f"{name}\n" for name in sorted(new))
            os.write(self._descriptor, lines.encode())
            self._names |= new


def held_by(pids: Iterable[int]) -> set[str]:
    """Names of such files that are mapped into these processes."""
    inodes: set[int] = set()
    for pid in pids:
        # It may just have ended.
        with suppress(OSError):
            inodes |= _mapped(Path(f"/proc/{pid}/maps").read_text())
    names: set[str] = set()
    if inodes:
        with os.scandir(SHARED_MEMORY) as entries:
            for entry in entries:
                if entry.inode() in inodes and entry.name.startswith(PREFIXES):
                    names.add(entry.name)
    return names


def _mapped(maps: str) -> set[int]:
    """Inodes of shared memory in a table of maps; a semaphore stands there under a name that it had before."""
    inodes: set[int] = set()
    for line in maps.splitlines():
        if f" {SHARED_MEMORY}/" in line:
            inodes.add(int(line.split()[4]))
    return inodes


def sweep_held() -> int:
    """Remove what workers of this user held who have ended, and return how many files there were."""
    num_removed = 0
    for path in SHARED_MEMORY.glob(f"sightline-*{_SUFFIX}"):
        # Locked by a living worker, another user's, or just removed by somebody else.
        with suppress(OSError):
            descriptor = os.open(path, _NO_LINKS)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
                num_removed += _remove(content.decode().splitlines())
                path.unlink()
            finally:
                os.close(descriptor)
    return num_removed


def _remove(names: Iterable[str]) -> int:
    num_removed = 0
    for name in names:
        if name.startswith(PREFIXES) and "/" not in name:
            # Whose own watcher has removed it.
            with suppress(FileNotFoundError):
                (SHARED_MEMORY / name).unlink()
                num_removed += 1
    return num_removed


def _locked_list() -> int:
    """A descriptor of this process's list, which it has locked until it ends (OSError when a sweep is at it)."""
    path = SHARED_MEMORY / f"sightline-{os.geteuid()}-{os.getpid()}{_SUFFIX}"
    descriptor = os.open(path, _NO_LINKS | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(descriptor).st_nlink:
            raise FileNotFoundError(path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
