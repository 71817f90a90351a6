"""`python -m cluster.import_data prompts`, and what importers of pairs make of the columns they do not read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.import_data import main
from cluster.jobs import import_job
from common.config.data import Data
from common.data.datasets import PROMPTS, STATS, read_pairs, read_prompts
from common.data.images import ImageStore
from common.data.prompt_sources import load_split
from common.data.records_on_disk import usable
from common.records import Prompt


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """An image folder of 30 rows about six pictures; every tenth row has no question."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = []
    for number in range(30):
        name = f"{number % 6}.png"
        Image.new("RGB", (8, 8), (number % 6, 0, 0)).save(folder / name)
        row: dict[str, Any] = {"file_name": name, "label": number, "answer": "A cat."}
        if number % 10:
            row["question"] = f"What {number}?"
        rows.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def without_paths(prompt: Prompt) -> Prompt:
    images = tuple(replace(ref, path="") for ref in prompt.images)
    return replace(prompt, images=images)


def test_an_import_is_what_a_run_would_have_read(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["prompts", str(files), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "prompt_none" in printed
    assert "27 prompts of 30 rows" in printed
    imported = read_prompts(out)
    store = ImageStore(tmp_path / "store")
    dropped: list[Any] = []
    data = Data.model_validate({"prompts": str(files)})
    loaded = list(usable(load_split(data, "train", store, dropped), dropped))
    assert list(map(without_paths, imported)) == list(map(without_paths, loaded))
    stats = json.loads((out / STATS).read_text())
    assert stats["dropped"] == {"prompt_none": len(dropped)} == {"prompt_none": 3}
    assert imported[0].truth == {"label": 1}
    # And once more from the set.
    data = Data.model_validate({"prompts": str(out)})
    again = list(load_split(data, "train", store, dropped))
    assert again == imported


class Killed(BaseException):
    """Stands for a signal."""


def test_a_killed_import_goes_on(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_job, "SHARD_RECORDS", 4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["prompts", str(files), "--out", str(whole)]) == 0
    flush = import_job.Shard.flush
    num_flushed = 0

    def dying_flush(shard: import_job.Shard) -> None:
        nonlocal num_flushed
        num_flushed += 1
        if num_flushed == 4:
            raise Killed
        flush(shard)

    monkeypatch.setattr(import_job.Shard, "flush", dying_flush)
    with pytest.raises(Killed):
        main(["prompts", str(files), "--out", str(parts)])
    monkeypatch.setattr(import_job.Shard, "flush", flush)
    assert not (parts / PROMPTS).exists()
    assert main(["prompts", str(files), "--out", str(parts)]) == 0
    of_whole = map(without_paths, read_prompts(whole))
    of_parts = map(without_paths, read_prompts(parts))
    assert list(of_whole) == list(of_parts)


def test_sets_of_ours_are_not_imported(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["prompts", str(files), "--out", str(out)]) == 0
    assert main(["prompts", str(out), "--out", str(tmp_path / "again")]) == 2
    assert "got a set of ours (prompts.parquet)" in capsys.readouterr().err


def test_pairs_keep_the_columns_that_no_importer_reads(
    files: Path, tmp_path: Path
) -> None:
    row = {
        "image": "0.png",
        "prompt": "What?",
        "chosen": "A cat.",
        "rejected": "A dog.",
        "origin": "mine",
        "boxes": [[1, 2]],
        "nothing": None,
        "id": 7,
    }
    path = files / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert main(["mm_rlhf", str(path), "--out", str(tmp_path / "pairs")]) == 0
    (pair,) = read_pairs(tmp_path / "pairs")
    assert pair.prompt.truth == {"origin": "mine", "boxes": [[1, 2]]}
    assert pair.id == "mm_rlhf/0:7"
