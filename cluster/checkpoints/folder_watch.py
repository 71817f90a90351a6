"""Watches a folder that ranks write into, so that nobody waits in silence for a disk, or for ever."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from threading import Thread
from time import monotonic

from common.config import Loop
from common.errors import RunFailed

log = logging.getLogger("sightline")

ANSWER_S = 1.0
"""A file system that does not say within these seconds what it holds has got nothing new."""


class FolderWatch:
    """Looks whether files grow. Not how long they take: a checkpoint of a large model is written for many minutes.

    Args:
        what: is written there, for messages.
        limits: its `heartbeat_s` and `stall_limit_s` count from the last byte that came.
    """

    def __init__(self, folder: Path, what: str, limits: Loop) -> None:
        self._folder = folder
        self._what = what
        self._limits = limits
        self._num_bytes = 0
        self._grew_at = monotonic()
        self._next_warning = self._grew_at + limits.heartbeat_s
        self._counting: asyncio.Future[int] | None = None

    async def look(self) -> None:
        """Warn once a heartbeat while nothing is written.

        Raises:
            RunFailed: nothing was written for too long.
        """
        has_grown = await self._has_grown()
        now = monotonic()
        if has_grown:
            self._grew_at = now
            self._next_warning = now + self._limits.heartbeat_s
            return
        silent_s = now - self._grew_at
        if silent_s > self._limits.stall_limit_s:
            raise RunFailed(
                f"{self._what}: expected files in {self._folder}, got nothing new for {silent_s:.0f} s; look at its "
                "disk, and go on with --resume"
            )
        if now >= self._next_warning:
            log.warning(
                "%s: nothing new for %.0f s in %s, %.2f GB so far",
                self._what,
                silent_s,
                self._folder,
                self._num_bytes / 1e9,
            )
            self._next_warning = now + self._limits.heartbeat_s

    async def _has_grown(self) -> bool:
        if self._counting is None:
            self._counting = _begin_counting(self._folder)
        await asyncio.wait({self._counting}, timeout=ANSWER_S)
        if not self._counting.done():
            return False
        num_bytes = self._counting.result()
        self._counting = None
        has_grown = num_bytes != self._num_bytes
        self._num_bytes = num_bytes
        return has_grown


def _begin_counting(folder: Path) -> asyncio.Future[int]:
    """The bytes in a folder, once its file system has said so.

    In a daemon thread: a stalled file system may never answer, and the end of the process must not wait for it, as it
    does for threads of the event loop.
    """
    loop = asyncio.get_running_loop()
    counted: asyncio.Future[int] = loop.create_future()

    def set_result(num_bytes: int) -> None:
        if not counted.done():
            counted.set_result(num_bytes)

    def count() -> None:
        num_bytes = _bytes_in(folder)
        # The loop may be closed by then: nobody waits any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(set_result, num_bytes)

    Thread(target=count, daemon=True).start()
    return counted


def _bytes_in(folder: Path) -> int:
    num_bytes = 0
    for path in folder.rglob("*"):
        try:
            num_bytes += path.stat().st_size
        except OSError:
            # Renamed meanwhile: it counts under its name at the next look.
            continue
    return num_bytes
