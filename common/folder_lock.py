"""One owner of a folder at a time, whatever way the last one ended.

The lock is `flock` on `FOLDER/.lock`. The system gives it up when its process ends, also by SIGKILL, so a dead owner
never blocks. On NFS, Linux hands it to the server, which keeps it for all machines (unless mounted with `nolock` or
`local_lock=flock`). On a file system without locks the owner that the file names is looked for instead, which works on
one machine only, and that is said.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
import weakref
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.paths import writing

LOCK = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems answer that have no locks."""

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
                _write_owner(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        # Whoever forgets to close, closes when the lock is collected.
        self._release = weakref.finalize(self, _release, descriptor, os.getpid())

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder up; again does nothing."""
        self._release()


def _is_free(descriptor: int, path: Path) -> bool:
    """Take the lock; False when somebody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            error.filename = str(path)
            raise
        owner = _read_owner(path)
        log.warning(
            "%s: this file system has no locks, so a second owner on another machine would not be noticed",
            path.parent,
        )
        return not _lives_here(owner)
    return True


def _lives_here(owner: dict[str, Any]) -> bool:
    """Whether the owner's process runs on this machine."""
    pid = owner.get("pid")
    if owner.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    return Path(f"/proc/{pid}").exists()


def _write_owner(descriptor: int) -> None:
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


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


def _release(descriptor: int, pid: int) -> None:
    # A forked child closes its copy; only the owner says that it is gone.
    try:
        if os.getpid() == pid:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
