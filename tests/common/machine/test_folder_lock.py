"""The lock of a folder: one owner, released however its process ends."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common.errors import UserError
from common.machine import folder_lock
from common.machine.folder_lock import FolderLock


def owner(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / ".lock").read_text())
    return content


def test_the_file_names_the_owner_while_there_is_one(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "new", "run.dir"):
        content = owner(tmp_path / "new")
        assert (content["host"], content["pid"]) == (socket.gethostname(), os.getpid())
        assert str(content["since"]).startswith("20")
    assert (tmp_path / "new" / ".lock").read_text() == ""


def test_a_second_owner_waits_for_the_end_of_the_first(tmp_path: Path) -> None:
    first = FolderLock(tmp_path, "run.dir")
    with pytest.raises(UserError, match="expected one owner"):
        FolderLock(tmp_path, "run.dir")
    assert owner(tmp_path)["pid"] == os.getpid(), "the refused one wrote nothing"
    first.close()
    first.close()
    FolderLock(tmp_path, "run.dir").close()


def test_a_lock_that_nobody_closed_goes_with_its_owner(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, "run.dir")
    del lock
    gc.collect()
    FolderLock(tmp_path, "run.dir").close()


FORKS = """
import os, sys
from pathlib import Path
from common.machine.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1]), "run.dir") as lock:
    child = os.fork()
    if child == 0:
        lock.close()
        os._exit(0)
    os.waitpid(child, 0)
    print(os.getpid(), (Path(sys.argv[1]) / ".lock").read_text())
"""


def test_a_forked_child_that_ends_leaves_the_owner_its_name(tmp_path: Path) -> None:
    """In a small process: a test process that holds models can be too large to fork."""
    result = subprocess.run(
        [sys.executable, "-c", FORKS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    pid, owner = result.stdout.split(maxsplit=1)
    assert json.loads(owner)["pid"] == int(pid)


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_without_locks_the_named_owner_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NFS mounted with `nolock`, for example: this machine's processes are known, and the limit is said."""
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with caplog.at_level(logging.WARNING), FolderLock(tmp_path, "run.dir"):
        assert "this file system has no locks" in caplog.text
        with pytest.raises(UserError, match=f"process {os.getpid()} on"):
            FolderLock(tmp_path, "run.dir")
    dead = {"host": socket.gethostname(), "pid": 2**22 + 1, "since": "2026"}
    (tmp_path / ".lock").write_text(json.dumps(dead))
    FolderLock(tmp_path, "run.dir").close()


ELSEWHERE = {"host": "another machine", "pid": os.getpid(), "since": "2026", "beat": 7}


@pytest.mark.parametrize("locks", [True, False])
def test_an_owner_on_another_machine_is_known_by_its_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """NFS mounted with `local_lock=flock` gives the lock to both; no clock is compared."""
    monkeypatch.setattr(folder_lock, "BEAT_S", 0.05)
    if not locks:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    path = tmp_path / ".lock"
    path.write_text(json.dumps(ELSEWHERE))
    counts = threading.Timer(
        0.08, path.write_text, [json.dumps({**ELSEWHERE, "beat": 8})]
    )
    counts.start()
    with pytest.raises(UserError, match=r"beside process \d+ on another machine"):
        FolderLock(tmp_path, "run.dir")
    counts.join()
    # It does not count any more: its machine is gone.
    FolderLock(tmp_path, "run.dir").close()


def test_an_owner_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "BEAT_S", 0.01)
    with FolderLock(tmp_path, "run.dir"):
        deadline = time.monotonic() + 10
        while owner(tmp_path)["beat"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert (tmp_path / ".lock").read_text() == ""


def test_a_broken_lock_service_is_no_free_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error") as error:
        FolderLock(tmp_path, "run.dir")
    assert error.value.filename == str(tmp_path / ".lock")
