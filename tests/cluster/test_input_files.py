"""What an import says about its files: splits, kinds, missing shards, shared rows, files that break off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.import_data import main
from cluster.jobs import import_job
from cluster.jobs.input_files import Overlaps, choose_split
from common.data.datasets import PAIRS, STATS, read_pairs
from common.errors import UserError
from common.importers import build
from common.reading.readers import DataFile
from common.records import Dropped

CAUSE = Dropped("x", "bad_file")


def write_rows(path: Path, numbers: range, **fields: Any) -> Path:
    """MM-RLHF's rows as JSON lines, with the picture that they name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in numbers:
        row = {"prompt": f"What {number}?", "chosen": "A cat.", "rejected": "A dog.", "image": "a.png"}  # fmt: skip
        lines.append(json.dumps(row | {"id": f"{path.stem}{number}"} | fields))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of three splits: 6 rows to train on in two shards, 2 to validate, 3 to test."""
    folder = tmp_path / "set"
    write_rows(folder / "data" / "train-00000-of-00002.jsonl", range(4))
    write_rows(folder / "data" / "train-00001-of-00002.jsonl", range(4, 6))
    write_rows(folder / "data" / "validation-00000-of-00001.jsonl", range(10, 12))
    write_rows(folder / "test.jsonl", range(20, 23))
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return folder


def questions(out: Path) -> list[str]:
    return [pair.prompt.messages[0].parts[1].text for pair in read_pairs(out)]


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        (["--split", "train"], [0, 1, 2, 3, 4, 5]),
        (["--split", "dev"], [10, 11]),
        (["--split", "test"], [20, 21, 22]),
        (["--split", "all"], [0, 1, 2, 3, 4, 5, 10, 11, 20, 21, 22]),
    ],
)
def test_one_split_is_imported(
    words: list[str], numbers: list[int], folder: Path, tmp_path: Path
) -> None:
    assert main(["mm_rlhf", str(folder), "--out", str(tmp_path / "out"), *words]) == 0
    assert questions(tmp_path / "out") == [f"What {number}?" for number in numbers]


def test_the_files_are_listed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "data" / "train-00001-of-00002.jsonl").unlink()
    write_rows(folder / "notes.json", range(1))
    assert main(["mm_rlhf", str(folder), "--out", str(tmp_path / "out")]) == 0
    reading, left_out, other, shards, *_ = capsys.readouterr().out.splitlines()
    assert reading == "reading 1 file (data/train-00000-of-00002.jsonl)"
    assert left_out.startswith("not reading 2 files (data/validation-00000")
    assert "split test, validation; see --split" in left_out
    assert other.startswith("not reading 1 file (notes.json)")
    assert shards.endswith("expected 2 shards, got 1; fetch the rest")
    stats = json.loads((tmp_path / "out" / STATS).read_text())
    assert stats["left_out"] == {
        "validation": ["data/validation-00000-of-00001.jsonl"],
        "test": ["test.jsonl"],
    }


def test_a_split_that_is_not_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["mm_rlhf", str(folder), "--out", str(tmp_path / "out")]
    assert main([*line, "--split", "training_set"]) == 2
    told = capsys.readouterr().err
    assert "--split: expected one of test, train, validation or all, got training_set" in told  # fmt: skip
    assert not (tmp_path / "out").exists()


def files_of(*splits: str | None) -> list[DataFile | Dropped]:
    return [
        DataFile(Path(f"{number}"), split=split) for number, split in enumerate(splits)
    ]


@pytest.mark.parametrize(
    ("splits", "read"),
    [
        ((None, None), [0, 1]),
        (("test", "test"), [0, 1]),
        (("train", None), [0, 1]),
        ((None, "test"), [0]),
        (("validation", "train", None), [1, 2]),
    ],
)
def test_the_split_that_is_read_by_default(
    splits: tuple[str | None, ...], read: list[int]
) -> None:
    """All where there is one split, else train; a name that says none is one of train's."""
    files = files_of(*splits)
    choice = choose_split([CAUSE, *files], None)
    assert choice.read == [CAUSE, *(files[number] for number in read)]
    assert len(choice.left_out) == len(splits) - len(read)


def test_several_splits_without_train_have_to_be_named() -> None:
    with pytest.raises(UserError, match="expected one of test, validation or all"):
        choose_split(files_of("test", "validation"), None)


def test_rows_that_two_files_share_are_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever their ids; rows that repeat within one file are not meant."""
    write_rows(folder / "more.jsonl", range(2, 9))
    with (folder / "more.jsonl").open("a") as file:
        file.write((folder / "more.jsonl").read_text().splitlines()[-1] + "\n")
    assert main(["mm_rlhf", str(folder), "--out", str(tmp_path / "out")]) == 0
    data = folder / "data"
    expected = [
        f"{folder / 'more.jsonl'} repeats 2 rows of {data / 'train-00000-of-00002.jsonl'}",
        f"{folder / 'more.jsonl'} repeats 2 rows of {data / 'train-00001-of-00002.jsonl'}",
    ]
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "repeats" in line] == [
        f"warning: {line}" for line in expected
    ]
    assert json.loads((tmp_path / "out" / STATS).read_text())["overlaps"] == expected


class Killed(BaseException):
    """Stands for a signal."""


def test_overlaps_are_known_after_a_kill(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(folder / "more.jsonl", range(2, 6))
    monkeypatch.setattr(import_job, "SHARD_RECORDS", 1)
    line = ["mm_rlhf", str(folder), "--out"]
    assert main([*line, str(tmp_path / "whole")]) == 0

    def dying(importer: Any, number: int, *rest: Any) -> Any:
        if number == 7:
            raise Killed
        return build.outcomes(importer, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(import_job, "outcomes", dying)
        with pytest.raises(Killed):
            main([*line, str(tmp_path / "parts")])
    assert main([*line, str(tmp_path / "parts")]) == 0
    stats = [(tmp_path / name / STATS).read_text() for name in ("whole", "parts")]
    assert stats[0] == stats[1] and "repeats 2 rows" in stats[0]


def test_equal_values_have_equal_fingerprints() -> None:
    """NaN equals itself here, key order does not count, and numbers of rows are no content."""
    overlaps = Overlaps()
    row = {"id": 1, "a": [b"x", {"b": float("nan"), "c": None}], "d": 1.5}
    same = {"d": 1.5, "a": [b"x", {"c": None, "b": float("nan")}], "idx": 7}
    other = {**same, "d": 1}
    overlaps.add(row, Path("first"))
    for later in (same, other, "no row", {"a": [[]]}):
        overlaps.add(later, Path("second"))
    assert overlaps.lines() == ["second repeats 1 rows of first"]


@pytest.mark.parametrize("layout", ["list", "lines", "wrapped"])
def test_a_file_that_breaks_off_ends_the_import(
    layout: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and the number of rows; the folder is free for the mended file, or for the rows that are there."""
    rows = [json.loads(line) for line in write_rows(folder / "x.jsonl", range(9)).read_text().splitlines()]  # fmt: skip
    text = {
        "list": json.dumps(rows),
        "lines": "\n".join(json.dumps(row) for row in rows),
        "wrapped": json.dumps({"data": rows}),
    }[layout]
    path = folder / "broken.json"
    path.write_text(text[: text.index("What 7?")])
    line = ["mm_rlhf", str(path), "--out", str(tmp_path / "out")]
    assert main(line) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: broken.json: expected a whole file, got: it breaks off")  # fmt: skip
    assert "7 rows came before that" in told and "--count 7" in told
    assert told.count("\n") == 1 and not (tmp_path / "out" / PAIRS).exists()
    assert main([*line[:-1], str(tmp_path / "few"), "--count", "7"]) == 0
    assert len(read_pairs(tmp_path / "few")) == 7
    path.write_text(text)
    assert main(line) == 0
    assert len(read_pairs(tmp_path / "out")) == 9


def test_rows_with_nan_in_a_list_cost_nothing(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in write_rows(folder / "x.jsonl", range(9)).read_text().splitlines()]  # fmt: skip
    rows[2]["score"] = float("nan")
    (folder / "nan.json").write_text(json.dumps(rows).replace('"What 4?"', "What 4?"))
    line = ["mm_rlhf", str(folder / "nan.json"), "--out", str(tmp_path / "out")]
    assert main(line) == 0
    assert len(read_pairs(tmp_path / "out")) == 8
    stats = json.loads((tmp_path / "out" / STATS).read_text())
    assert stats["num_rows"] == 9 and stats["dropped"] == {"bad_row": 1}
