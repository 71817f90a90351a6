"""One owner of a folder at a time, whatever way the last one ended.

The lock is `flock` on `FOLDER/.lock`. The system gives it up when its process ends, also by SIGKILL, so a dead owner
never blocks. On NFS, Linux hands it to the server, which keeps it for all machines, unless mounted with `nolock` or
`local_lock=flock`; other file systems have no locks at all. So the owner also counts in the file, every few seconds.
Who comes from another machine watches that count for a while before it takes the folder. No clocks are compared: they
jump, and differ between machines.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.paths import writing

LOCK = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems answer that have no locks."""
BEAT_S = 3.0
"""Between two counts."""
BEATS_WATCHED = 4
"""So many may pass unseen, since NFS keeps what it has read for some seconds."""

SINCE = time.strftime("%Y-%m-%d %H:%M:%S %z")
"""When this process began."""

log = logging.getLogger("sightline")


class FolderLock:
    """Owns a folder, which is made if it is not there, until `close` or until this process ends.

    A context manager. The file names the owner: its host, its process and when it came. It stays behind empty.

    Raises:
        UserError: somebody else owns the folder. Nothing in it was touched.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """`name` is what the folder is to the user, for the message: a config key."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not _is_free(descriptor, path):
                raise UserError(
                    f"{name}: expected one owner of {folder}, got a second one beside "
                    f"{_described(_read_owner(path))}; wait for its end, stop it, or choose another folder"
                )
            with writing(path):
                _write_owner(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
        ended = threading.Event()
        count = threading.Thread(
            target=_count, args=(descriptor, ended), name="folder-lock", daemon=True
        )
        count.start()
        # Whoever forgets to close, closes when the lock is collected.
        self._release = weakref.finalize(
            self, _release, descriptor, os.getpid(), ended, count
        )

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder up; again does nothing."""
        self._release()


def _is_free(descriptor: int, path: Path) -> bool:
    """Take the lock; False when somebody else has it."""
    owner = _read_owner(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            error.filename = str(path)
            raise
        log.warning(
            "%s: this file system has no locks, so two owners that come at the same moment would not be noticed",
            path.parent,
        )
        if _lives_here(owner):
            return False
    is_elsewhere = bool(owner) and owner.get("host") != socket.gethostname()
    return not (is_elsewhere and _counts(path, owner))


def _counts(path: Path, owner: dict[str, Any]) -> bool:
    """Whether an owner on another machine still counts."""
    log.warning(
        "%s: looking for %.0f s whether %s still runs",
        path.parent,
        BEATS_WATCHED * BEAT_S,
        _described(owner),
    )
    for _ in range(BEATS_WATCHED):
        time.sleep(BEAT_S)
        now = _read_owner(path)
        # Empty: it has ended, or is about to write.
        if now and now != owner:
            return True
    return False


def _count(descriptor: int, ended: threading.Event) -> None:
    """Count in the file until the owner ends."""
    beat = 0
    while not ended.wait(BEAT_S):
        beat += 1
        # A full disk or a server that is away is no reason to end.
        with suppress(OSError):
            _write_owner(descriptor, beat)


def _lives_here(owner: dict[str, Any]) -> bool:
    """Whether the owner's process runs on this machine."""
    pid = owner.get("pid")
    if owner.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    return Path(f"/proc/{pid}").exists()


def _write_owner(descriptor: int, beat: int) -> None:
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": SINCE,
        "beat": beat,
    }
    content = json.dumps(owner).encode()
    # In one call, so that a reader finds it whole; it never becomes shorter.
    os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))


def _read_owner(path: Path) -> dict[str, Any]:
    """Who owns the folder, {} when the file does not say it."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _described(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    pid, host, since = (owner.get(key, "?") for key in ("pid", "host", "since"))
    return f"process {pid} on {host} (since {since})"


def _release(
    descriptor: int, pid: int, ended: threading.Event, count: threading.Thread
) -> None:
    # A forked child closes its copy; only the owner says that it is gone.
    try:
        if os.getpid() == pid:
            ended.set()
            count.join()
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
