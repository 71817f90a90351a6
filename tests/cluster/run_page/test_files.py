"""The page as a folder: whole, of one piece, and without a word that a browser could take for markup."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.report import main
from cluster.run_page.files import (
    DROPS_OF_A_REASON,
    MAX_PAIRS,
    PER_FILE,
    REPORT,
    write_page,
)
from cluster.run_page.pairs import SHOWN_CHARACTERS
from cluster.run_page.run import RunPage
from common.errors import UserError
from tests.cluster.run_page.written_runs import HOSTILE, data_of, write_run
from tests.docs.pages import DOCS


def test_the_command_writes_all_pairs_their_pictures_and_some_drops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = write_run(tmp_path / "run", num_pairs=240)
    assert main([str(run_dir), "--page"]) == 0
    folder = run_dir / "report"
    assert capsys.readouterr().out == f"look: {folder / 'report.html'}\n"
    index = data_of(folder, "pairs")
    rows = index["rows"]
    assert len(rows) == 240 + DROPS_OF_A_REASON
    items: list[Any] = []
    for number in range(-(-len(rows) // PER_FILE)):
        items += data_of(folder, f"pairs_{number:04d}")
    assert len(items) == len(rows)
    # A row of the index is about the item of its number.
    for (source, reason, step, _, margin), item in zip(rows, items, strict=True):
        assert (source, reason) == (item["source"], item["reason"])
        assert margin == item["margin"]
        assert step == (item["step"] or item["settled"])
    names = {path.stem for path in (folder / "pictures").iterdir()}
    assert names == {sha256 for item in items for sha256 in item["pictures"]}
    assert data_of(folder, "choices")["reasons"] == {"tie": 60}
    assert data_of(folder, "overview")["state"] == "ended"


def test_what_is_left_out_is_said_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 12 pairs the newest 10 are written; the page is told both figures, and the others by which it is cut."""
    monkeypatch.setattr("cluster.run_page.files.MAX_PAIRS", 10)
    with RunPage(write_run(tmp_path / "run", 12)) as run:
        folder = write_page(run, tmp_path / "page").parent
    index = data_of(folder, "pairs")
    assert len([row for row in index["rows"] if not row[1]]) == 10
    assert (index["num_pairs"], index["most_pairs"]) == (12, 10)
    assert index["most_drops"] == DROPS_OF_A_REASON
    assert index["most_characters"] == SHOWN_CHARACTERS


def test_the_limits_are_those_of_the_document() -> None:
    text = " ".join((DOCS / "howto" / "run_page.md").read_text().split())
    assert f"the newest {MAX_PAIRS:,} pairs" in text
    assert f"the newest {DROPS_OF_A_REASON} drops of each reason" in text
    assert f"the first {SHOWN_CHARACTERS:,} characters of every answer" in text


def test_it_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    with RunPage(write_run(tmp_path / "run", 4, [HOSTILE])) as run:
        page = write_page(run, tmp_path / "page")
    html = page.read_text()
    assert "http://" not in html and "https://" not in html
    assert "script-src 'self' file:;" in html
    for name in ("load_files.js", "page.css", "page.js", "pairs.js", "plots.js"):
        assert (page.parent / "assets" / name).exists()
        assert f"assets/{name}" in html
    for path in (page.parent / "data").iterdir():
        # The line separators of Unicode would end a line of a script.
        assert path.read_bytes().isascii()


def test_an_earlier_page_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    with RunPage(write_run(tmp_path / "run")) as run:
        page = write_page(run, tmp_path / "page")
        (page.parent / "old").write_text("")
        write_page(run, tmp_path / "page")
        assert not (page.parent / "old").exists()
        with pytest.raises(UserError, match="expected a folder without a run"):
            write_page(run, tmp_path)
    assert (tmp_path / "run" / "config.json").exists()


def test_a_folder_with_a_page_of_another_command_stays(tmp_path: Path) -> None:
    """`python -m cluster.report A B --out mine/report.html` writes a file of that name."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / REPORT).write_text("")
    with (
        RunPage(write_run(tmp_path / "run")) as run,
        pytest.raises(UserError, match="expected an empty folder"),
    ):
        write_page(run, folder)
    assert (folder / REPORT).exists()


@pytest.mark.parametrize("place", ["runs/run", "runs", "runs/other"])
def test_a_run_is_never_replaced(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even where the folder looks like an earlier page in every way."""
    run_dir = write_run(tmp_path / "runs" / "run", 4)
    other = write_run(tmp_path / "runs" / "other", 4)
    assert main([str(run_dir), "--page", str(tmp_path / "page")]) == 0
    folder = tmp_path / place
    for path in (tmp_path / "page").iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    capsys.readouterr()
    assert main([str(run_dir), "--page", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "expected a folder without a run" in error and error.count("\n") == 1
    assert (run_dir / "config.json").exists() and (other / "config.json").exists()
