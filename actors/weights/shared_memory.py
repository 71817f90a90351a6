"""Folders in shared memory through which weights reach the engines of a node: one copy, however many engines.

A folder is named after the checksum of what it holds. Two locks say who is at it:

    the folder's            shared by all who want what it holds, from their coming to their leaving: those who wait
                            for it are counted too, so that a quick reader does not remove it before they have read.
                            The last one to leave gets it alone and removes the folder
    the file `filling`'s    held by the one who fills the folder, while the others wait

The kernel releases a lock when its process ends, however it ends. So a folder that is half full is filled by the next
one who wants it, and one that nobody is at any more is removed at the next push or start of an engine. A process that
hangs while it fills a folder is waited for with limited patience.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from pathlib import Path

from common.errors import UserError
from common.machine import held_files

_PREFIX = "sightline-"
_WHOLE = "whole"
"""The file that ends a folder: without it the process that filled the folder was killed."""
_FILLING = "filling"
_POLL_S = 0.005
_NEVER_THROUGH_LINKS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def check_room(num_bytes: int) -> None:
    """Raise a UserError when shared memory has no room for so many bytes."""
    folder = held_files.SHARED_MEMORY
    num_free = shutil.disk_usage(folder).free
    if num_bytes > num_free:
        raise UserError(
            f"{folder}: expected {num_bytes >> 20} MiB free for a weight push, got {num_free >> 20} MiB; "
            "enlarge it (docker: --shm-size)"
        )


@contextmanager
def shared_folder(
    content: str,
    fill: Callable[[Path], None],
    patience_s: float,
) -> Iterator[Path]:
    """A folder that only this user can read, removed after use.

    Where several processes ask for the same content at once, one of them fills the folder and the others wait.

    Args:
        content: a checksum of what the folder will hold.
        fill: writes into the empty folder; what it raises reaches the caller, and the next process tries.
        patience_s: to wait for a process that fills the folder, until this one fills a folder of its own.

    Raises:
        UserError: another user has a folder of this name.
    """
    folder = held_files.SHARED_MEMORY / f"{_PREFIX}{os.geteuid()}-{content}"
    with _at(folder):
        if _became_whole(folder, fill, patience_s):
            yield folder
            return
    # The other one hangs: its engines fail, those of this process need not.
    alone = folder.with_name(f"{folder.name}-{os.getpid()}")
    with _at(alone):
        # Whoever fills it hangs with this process or not at all.
        _became_whole(alone, fill, math.inf)
        yield alone


@asynccontextmanager
async def in_thread(manager: AbstractContextManager[Path]) -> AsyncIterator[Path]:
    """Enter and leave in a thread of its own, so that the event loop goes on.

    What was entered is left, also for a caller that is cancelled meanwhile.
    """
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1)
    stack = ExitStack()
    try:
        yield await loop.run_in_executor(thread, stack.enter_context, manager)
    finally:
        # One thread: it leaves after it has entered, however long that takes.
        leaving = loop.run_in_executor(thread, stack.close)
        thread.shutdown(wait=False)
        await leaving


def sweep() -> int:
    """Remove what killed processes of this user left behind, and return how many folders and files there were.

    Each may hold a whole model.
    """
    num_removed = held_files.sweep_held()
    for folder in held_files.SHARED_MEMORY.glob(f"{_PREFIX}*"):
        # Locked by a living process, another user's, or just removed by somebody else.
        with suppress(OSError):
            descriptor = os.open(folder, _NEVER_THROUGH_LINKS)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                num_removed += 1
            finally:
                os.close(descriptor)
    return num_removed


@contextmanager
def _at(folder: Path) -> Iterator[None]:
    """Be one of those who want what the folder holds."""
    descriptor = _entered(folder)
    try:
        yield
    finally:
        _leave(folder, descriptor)


def _entered(folder: Path) -> int:
    """A descriptor that shares the lock of the folder, which is made where there is none."""
    while True:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        descriptor = _opened(folder)
        if descriptor is not None:
            # Refused while somebody removes it; then it is another folder that has this name.
            if _lock(descriptor, fcntl.LOCK_SH) and _is_at(folder, descriptor):
                return descriptor
            os.close(descriptor)
        time.sleep(_POLL_S)


def _opened(folder: Path) -> int | None:
    """A descriptor of a folder of this user; None when somebody has just removed it."""
    try:
        descriptor = os.open(folder, _NEVER_THROUGH_LINKS)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{folder}: expected a folder of this user, got {error.strerror!r}; remove what is there"
        ) from error
    owner = os.fstat(descriptor).st_uid
    if owner != os.geteuid():
        os.close(descriptor)
        raise UserError(
            f"{folder}: expected a folder of user {os.geteuid()}, got one of user {owner}; remove it"
        )
    return descriptor


def _became_whole(
    folder: Path, fill: Callable[[Path], None], patience_s: float
) -> bool:
    """Fill the folder, or wait until another process has; False when that takes too long."""
    deadline = time.monotonic() + patience_s
    filling = os.open(folder / _FILLING, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        while not (folder / _WHOLE).exists():
            if _lock(filling, fcntl.LOCK_EX):
                _fill(folder, fill)
                _lock(filling, fcntl.LOCK_UN)
            elif time.monotonic() > deadline:
                return False
            else:
                time.sleep(_POLL_S)
        return True
    finally:
        os.close(filling)


def _fill(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder whose filling this process has for itself, unless it has become whole."""
    if (folder / _WHOLE).exists():
        return
    _empty(folder)
    try:
        fill(folder)
    except BaseException:
        _empty(folder)
        raise
    (folder / _WHOLE).touch()


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        if file.name != _FILLING:
            file.unlink()


def _leave(folder: Path, descriptor: int) -> None:
    """Give the lock back; the last one removes the folder."""
    try:
        # Removed by somebody else when it is not there.
        if _lock(descriptor, fcntl.LOCK_EX) and _is_at(folder, descriptor):
            shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    """Take or change a lock unless another process forbids it. A change that fails gives back what was held."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(folder: Path, descriptor: int) -> bool:
    """Whether the folder that is open under this descriptor still has its name."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
