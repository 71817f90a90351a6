"""One owner of every output folder: a second command is refused, whoever comes first, and a kill leaves no lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import generate, import_data, train
from cluster.jobs import export_job
from common.data.datasets import read_pairs
from common.data.trl_format import TRAIN
from common.errors import UserError
from common.machine.folder_lock import LOCK, FolderLock
from tests.cluster.output_commands import (
    Command,
    bdhs,
    exported,
    imported,
    line_of,
    make_pairs,
    povid,
    trained,
)

every_owner = pytest.mark.parametrize(
    "command", [bdhs, povid, imported, exported, trained]
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("owners"))


OWNER = """
import sys, time
from pathlib import Path
from common.machine.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1]), "--out"):
    print("owned", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that owns `x`."""
    words = [sys.executable, "-c", OWNER, str(tmp_path / "x")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"owned\n"
        yield process
        process.kill()


@every_owner
def test_a_second_owner_is_refused_and_touches_nothing(
    command: Command,
    owner: subprocess.Popen[bytes],
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert command(pairs, tmp_path / "x") == 2
    line = line_of(capsys)
    assert f"expected one owner of {tmp_path / 'x'}" in line
    assert f"process {owner.pid} on " in line
    assert os.listdir(tmp_path / "x") == [LOCK]  # noqa: PTH208 - names are what counts


@pytest.mark.parametrize("command", [povid, imported, exported])
def test_a_killed_owner_leaves_a_folder_that_the_next_takes(
    command: Command, owner: subprocess.Popen[bytes], pairs: Path, tmp_path: Path
) -> None:
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert (tmp_path / "x" / LOCK).read_text(), "it could not say that it is gone"
    assert command(pairs, tmp_path / "x") == 0
    assert (tmp_path / "x" / LOCK).read_text() == ""


def test_an_export_replaces_no_set_and_a_set_no_export(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both have a spec.json: an export into the folder of its own set made the set unusable."""
    before = {
        file.name: file.read_bytes() for file in pairs.iterdir() if file.is_file()
    }
    capsys.readouterr()
    assert exported(pairs, pairs) == 2
    assert "expected a folder without pairs.parquet" in line_of(capsys)
    after = {file.name: file.read_bytes() for file in pairs.iterdir() if file.is_file()}
    assert after == {**before, LOCK: b""}
    out = tmp_path / "export"
    assert exported(pairs, out) == 0
    capsys.readouterr()
    for command in (povid, imported):
        assert command(pairs, out) == 2
        assert "got an export" in line_of(capsys)
    assert exported(pairs, out) == 0
    # The file of a published set may have the same name, and lie where its import goes.
    published = tmp_path / "published"
    published.mkdir()
    (published / TRAIN).write_bytes((out / TRAIN).read_bytes())
    assert (
        import_data.main(["trl", str(published / TRAIN), "--out", str(published)]) == 0
    )
    assert len(read_pairs(published)) == 2


def test_a_failed_export_gives_its_folder_up(pairs: Path, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    lost.mkdir()
    (lost / "pairs.parquet").write_bytes((pairs / "pairs.parquet").read_bytes())
    with pytest.raises(UserError, match="none of 2"):
        export_job.export_set(lost, tmp_path / "x")
    assert exported(pairs, tmp_path / "x") == 0


FAILED: list[tuple[list[str], list[str]]] = [
    (["bdhs", "--model", "nowhere", "--seed", "1"], ["povid", "--corrupter", "rules"]),
    (["povid", "--endpoint", "http://127.0.0.1:9/v1", "--model-name", "x"], ["povid", "--corrupter", "rules"]),
]  # fmt: skip


@pytest.mark.parametrize(("failing", "corrected"), FAILED)
def test_a_failed_start_of_generate_leaves_nothing_that_binds(
    failing: list[str],
    corrected: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ["--out", str(tmp_path / "x"), "--count", "2"]
    assert generate.main([*failing, *where]) != 0
    assert capsys.readouterr().err.count("error: ") == 1
    assert generate.main([*corrected, *where, "--seed", "7"]) == 0


def test_a_failed_start_of_an_import_leaves_nothing_that_binds(
    pairs: Path, tmp_path: Path
) -> None:
    """The wrong importer, then the right one."""
    source = str(pairs.parent / "exported" / TRAIN)
    for name, status in (("rlaif_v", 2), ("trl", 0)):
        assert import_data.main([name, source, "--out", str(tmp_path / "x")]) == status
    assert len(read_pairs(tmp_path / "x")) == 2


def test_a_run_and_an_export_share_one_lock(pairs: Path, tmp_path: Path) -> None:
    """Whoever comes first owns the folder, be it run.dir or --out; `--resume` is no way around it."""
    out = tmp_path / "x"
    with FolderLock(out, "run.dir"), pytest.raises(UserError, match="one owner"):
        export_job.export_set(pairs, out)
    with FolderLock(out, "--out"):
        words = ["--mixture.online_fraction=1", f"--run.dir={out}"]
        assert train.main([*words, "--resume"]) == 2
    assert not (out / "config.json").exists()
