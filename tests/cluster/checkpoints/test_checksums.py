"""A folder's checksums find every kind of damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.checkpoints.checksums import CHECKSUMS, damage, write_checksums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "learner").mkdir()
    (tmp_path / "learner" / "weights.bin").write_bytes(bytes(1000))
    (tmp_path / "state.json").write_text("{}")
    write_checksums(tmp_path)
    return tmp_path


def _flip(folder: Path) -> None:
    path = folder / "learner" / "weights.bin"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)


def _cut(folder: Path) -> None:
    path = folder / "learner" / "weights.bin"
    path.write_bytes(path.read_bytes()[:-1])


def _delete(folder: Path) -> None:
    (folder / "learner" / "weights.bin").unlink()


def _tear_checksums(folder: Path) -> None:
    path = folder / CHECKSUMS
    path.write_text(path.read_text()[:-5])


def test_a_whole_folder_has_no_damage(folder: Path) -> None:
    assert damage(folder) is None
    # A file that came later is no damage.
    (folder / "note.txt").write_text("mine")
    assert damage(folder) is None


def test_a_folder_without_checksums_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    assert damage(tmp_path) == "no checksums.json"


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (_flip, "another learner/weights.bin than was written"),
        (_cut, "another learner/weights.bin than was written"),
        (_delete, "no learner/weights.bin"),
        (_tear_checksums, CHECKSUMS),
    ],
)
def test_damage_is_named(
    folder: Path, harm: Callable[[Path], None], fault: str
) -> None:
    harm(folder)
    assert fault in str(damage(folder))
