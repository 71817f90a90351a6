"""Weights of a killed worker are swept up by the next engine; those of a living one are not touched."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import actors.shared_memory
from actors.shared_memory import shared_folder, sweep

OWNER = """
import sys, time
from pathlib import Path
import actors.shared_memory
actors.shared_memory.SHARED_MEMORY = Path(sys.argv[1])
with actors.shared_memory.shared_folder() as folder:
    (folder / "weights.safetensors").write_bytes(bytes(100))
    print(folder, flush=True)
    time.sleep(600)
"""


def age(folder: Path) -> None:
    past = time.time() - 3600
    os.utime(folder, (past, past))


def test_what_a_killed_owner_left_is_swept_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors.shared_memory, "SHARED_MEMORY", tmp_path)
    (other := tmp_path / "somebody-elses").mkdir()
    age(other)
    words = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        age(folder)
        assert (sweep(), folder.exists()) == (0, True), "its owner is alive"
        owner.kill()
    os.utime(folder)
    assert (sweep(), folder.exists()) == (0, True), (
        "so young a folder may not be locked yet"
    )
    age(folder)
    assert (sweep(), list(tmp_path.iterdir())) == (1, [other])


def test_the_folder_is_gone_after_use_and_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors.shared_memory, "SHARED_MEMORY", tmp_path)
    with pytest.raises(ZeroDivisionError), shared_folder() as folder:
        assert folder.parent == tmp_path
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
