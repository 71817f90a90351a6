"""Outputs that are a file, read-only, full or without rights: one line at every command, and soon.

Full and read-only disks are real tmpfs mounts where the tests may mount; everywhere, faults are injected into the calls
that every output goes through.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import evaluate, import_data
from cluster.entry import exit_status
from common.journal import Journal
from common.machine import folder_lock
from tests.cluster.output_commands import (
    WRITERS,
    Command,
    exported,
    imported,
    line_of,
    make_pairs,
    reported,
)
from tests.cluster.runs import make_config, run

every_writer = pytest.mark.parametrize("command", WRITERS)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("outputs"))


@pytest.mark.parametrize("command", [*WRITERS, reported])
@pytest.mark.parametrize("below", [False, True])
def test_a_file_where_a_folder_belongs(
    below: bool,
    command: Command,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "x" if below else tmp_path / "file"
    capsys.readouterr()
    assert command(pairs, out) == 2
    assert str(tmp_path / "file") in line_of(capsys)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_where_a_file_belongs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["common/shapes/policy", "--evaluation.suites", '["shapes"]']
    assert evaluate.main([*words, "--samples", str(tmp_path)]) == 2
    assert line_of(capsys) == (
        f"error: {tmp_path}: expected a file, got 'Is a directory'; give the name of a file, not of a folder"
    )


@pytest.mark.parametrize("spec", ["", "null", "5", "\xff", "[" * 100_000])
def test_a_spec_that_is_none_is_one_line(
    spec: str, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (exported, imported):
        out = tmp_path / command.__name__
        assert command(pairs, out) == 0
        (out / "spec.json").write_text(spec)
        capsys.readouterr()
        assert command(pairs, out) == 2
        assert f"{out}/spec.json: expected a JSON object, got: " in line_of(capsys)


def test_a_complete_set_needs_no_statistics(pairs: Path, tmp_path: Path) -> None:
    """They may be lost or damaged: what is complete stays so."""
    assert imported(pairs, tmp_path / "x") == 0
    for stats in ("", "null", "{}"):
        (tmp_path / "x" / "stats.json").write_text(stats)
        assert imported(pairs, tmp_path / "x") == 0


def test_figures_replace_no_file_of_a_set(
    pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page is named by the user, its figures are named after it."""
    capsys.readouterr()
    before = (
        (pairs / "spec.json").read_bytes() if (pairs / "spec.json").exists() else b""
    )
    assert (
        import_data.main(["inspect", str(pairs), "--out", str(pairs / "spec.html")])
        == 2
    )
    assert "would replace spec.json" in line_of(capsys)
    assert not before or (pairs / "spec.json").read_bytes() == before


def test_inspect_tries_its_page_and_its_figures_before_it_reads(
    tmp_path: Path,
    pairs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cluster.inspect import job

    def read(_: object) -> None:
        raise AssertionError("the set was read first")

    capsys.readouterr()
    monkeypatch.setattr(job, "read_set", read)
    (tmp_path / "page.json").mkdir()
    assert (
        import_data.main(["inspect", str(pairs), "--out", str(tmp_path / "page.html")])
        == 2
    )
    assert line_of(capsys).startswith(
        f"error: {tmp_path / 'page.json'}: expected a file, got"
    )


def test_two_outputs_are_two_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["common/shapes/policy", "--evaluation.suites", '["shapes"]']
    both = str(tmp_path / "x.html")
    assert evaluate.main([*words, "--out", both, "--samples", both]) == 2
    assert "another file than --out" in line_of(capsys)


# Real mounts.


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with these options; skips where the tests may not."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting needs rights that this machine does not give")
        return folder

    yield mount
    if folder.is_mount():
        # Lazily: a writer that was refused may still be waiting for its collection.
        subprocess.run(["umount", "-l", str(folder)], check=True)


@every_writer
def test_a_read_only_disk(
    command: Command,
    pairs: Path,
    mounted: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = mounted("ro") / "x"
    capsys.readouterr()
    assert command(pairs, out) == 2
    assert line_of(capsys) == (
        f"error: {out}: expected a place that can be written, got 'Read-only file system'; choose another place"
    )


@every_writer
def test_a_full_disk(
    command: Command,
    pairs: Path,
    mounted: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = mounted("size=4k")
    (disk / "rest").write_bytes(b"x" * 4096)
    capsys.readouterr()
    assert command(pairs, disk / "x") == 2
    line = line_of(capsys)
    assert line.startswith(f"error: {disk}/x/")
    assert "expected room to write, got 'No space left on device'; free some" in line
    assert not list(disk.glob("x/.*partial")), "what does not fit takes no room"


# Injected faults.


def fault(number: int) -> Callable[..., Any]:
    """A call that fails as the system does for a full disk: without a path."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@every_writer
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_as_data_goes_out(
    number: int,
    command: Command,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    monkeypatch.setattr(os, "fsync", fault(number))
    assert command(pairs, tmp_path / "x") == 2
    line = line_of(capsys)
    assert line.startswith(f"error: {tmp_path / 'x'}/")
    assert f"got {os.strerror(number)!r}; " in line


@every_writer
def test_a_folder_without_rights(
    command: Command,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The tests may run as root, whom no mode stops: the system's answer is a fake."""
    make = os.mkdir

    def mkdir(path: str, *args: Any, **kwargs: Any) -> None:
        if str(path).startswith(str(tmp_path / "closed")):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        make(path, *args, **kwargs)

    capsys.readouterr()
    monkeypatch.setattr(os, "mkdir", mkdir)
    assert command(pairs, tmp_path / "closed") == 2
    assert line_of(capsys) == (
        f"error: {tmp_path / 'closed'}: expected rights to use it, got 'Permission denied'; "
        "change its owner or mode, or choose another place"
    )


def test_a_disk_that_fills_up_while_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fifth step cannot be recorded; the run ends with the file's name, not with what came of it."""
    config = make_config(tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert exit_status(lambda: run(config) and None, "interrupted") == 2
    assert line_of(capsys).startswith(f"error: {tmp_path / 'run'}/")
    monkeypatch.undo()
    # With room again it goes on.
    run(config, resume=True)
    assert (tmp_path / "run" / "scorecard.json").exists()


def test_a_journal_on_a_full_disk_fails_alike_each_time(
    mounted: Callable[[str], Path],
) -> None:
    disk = mounted("size=4k")
    journal = Journal(disk / "events.jsonl")
    (disk / "rest").write_bytes(b"x" * 4096)
    journal.write("row", id="p1")
    for end in (journal.sync, journal.close, lambda: journal.write("row", id="p2")):
        with pytest.raises(OSError, match="No space left") as error:
            end()
        assert error.value.filename == str(disk / "events.jsonl")


def test_the_lock_itself_is_an_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", fault(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left") as error:
        folder_lock.FolderLock(tmp_path, "run.dir")
    assert error.value.filename == str(tmp_path / ".lock")
