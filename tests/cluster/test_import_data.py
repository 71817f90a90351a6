"""`python -m cluster.import_data`: resume, memory, and the drop histogram."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.import_data import main
from cluster.jobs import import_job
from common.data.datasets import (
    IMAGES,
    PAIRS,
    SPEC,
    STATS,
    read_pairs,
    read_prompts,
)
from common.importers import build

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """Stands for a signal: nothing between it and the process's end may catch it."""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A jsonl of 40 rows in MM-RLHF's shape over three pictures; every fifth row is a video."""
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [
        {
            "prompt": f"What {number}?",
            "chosen": f"A cat {number}.",
            "rejected": "A dog.",
            "image": f"{number % 3}.png",
        }
        | ({"video": "v.mp4"} if number % 5 == 0 else {})
        for number in range(40)
    ]
    path = tmp_path / "dpo_pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_import_prints_and_saves_what_was_dropped(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["mm_rlhf", str(files), "--out", str(tmp_path / "out")]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "video" in printed and "32 pairs of 40 rows" in printed
    pairs = read_pairs(tmp_path / "out")
    assert [pair.prompt.messages[0].parts[1].text for pair in pairs] == [
        f"What {n}?" for n in range(40) if n % 5
    ]
    assert len(list((tmp_path / "out" / IMAGES).rglob("*.png"))) == 3
    stats = json.loads((tmp_path / "out" / STATS).read_text())
    assert (
        stats["num_rows"] == 40
        and stats["num_pairs"] == 32
        and stats["dropped"] == {"video": 8}
    )
    assert stats["first_dropped"]["video"]["id"] == "mm_rlhf/0"
    assert (
        json.loads((tmp_path / "out" / SPEC).read_text())["origin"]
        == "yifanzhang114/MM-RLHF"
    )
    assert main(line) == 0
    assert "already complete, 32 pairs" in capsys.readouterr().out
    assert main([*line, "--count", "3"]) == 2
    assert "count = None" in capsys.readouterr().err


def test_count_and_prompts(files: Path, tmp_path: Path) -> None:
    assert (
        main(["mm_rlhf", str(files), "--out", str(tmp_path / "few"), "--count", "7"])
        == 0
    )
    assert len(read_pairs(tmp_path / "few")) == 5
    conversation = [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "A cat."},
    ]
    (tmp_path / "sft.json").write_text(
        json.dumps([{"image": "0.png", "conversations": conversation}] * 3)
    )
    assert (
        main(
            [
                "llava_instruct",
                str(tmp_path / "sft.json"),
                "--out",
                str(tmp_path / "sft"),
            ]
        )
        == 0
    )
    prompts = read_prompts(tmp_path / "sft")
    assert [prompt.reference for prompt in prompts] == ["A cat."] * 3 and not (
        tmp_path / "sft" / PAIRS
    ).exists()


def test_keys_come_from_a_preset_flags_and_overrides(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text(
        f"[import_data]\nout = '{tmp_path / 'out'}'\ncount = 3\n[run]\nseed = 1\n"
    )
    line = ["mm_rlhf", str(files), "--preset", str(preset), "--import_data.count=7"]
    assert main(line) == 0
    assert len(read_pairs(tmp_path / "out")) == 5
    assert main([*line, "--count", "8"]) == 2
    assert "--count and --import_data.count" in capsys.readouterr().err
    assert main([*line, "--run.seed", "2"]) == 2
    assert "--run.seed: expected a key that this" in capsys.readouterr().err


def test_a_killed_and_resumed_import_equals_an_uninterrupted_one(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_job, "SHARD_RECORDS", 4)
    original = build.outcomes
    read: list[int] = []

    def dying_at(row: int) -> Callable[..., Any]:
        def outcomes(importer: Any, number: int, *rest: Any) -> Any:
            if number == row:
                raise Killed
            read.append(number)
            return original(importer, number, *rest)

        return outcomes

    for at in (13, 14, 30):
        monkeypatch.setattr(import_job, "outcomes", dying_at(at))
        with pytest.raises(Killed):
            main(["mm_rlhf", str(files), "--out", str(tmp_path / "parts")])
        assert not (tmp_path / "parts" / PAIRS).exists()
    monkeypatch.setattr(import_job, "outcomes", dying_at(-1))
    assert main(["mm_rlhf", str(files), "--out", str(tmp_path / "parts")]) == 0
    assert len(read) < 40 + 3 * 5 and sorted(set(read)) == list(range(40))
    assert main(["mm_rlhf", str(files), "--out", str(tmp_path / "whole")]) == 0
    assert [
        replace(p, prompt=replace(p.prompt, images=()))
        for p in read_pairs(tmp_path / "parts")
    ] == [
        replace(p, prompt=replace(p.prompt, images=()))
        for p in read_pairs(tmp_path / "whole")
    ]
    assert (tmp_path / "parts" / STATS).read_text() == (
        tmp_path / "whole" / STATS
    ).read_text()


def test_a_kill_while_the_set_is_put_together(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    tables = count()

    def die(*_: Any) -> Any:
        if next(tables) == 1:
            raise Killed
        return original(*_)

    monkeypatch.setattr(import_job, "SHARD_RECORDS", 4)
    from common.data import datasets, pair_writer

    original = datasets.read_table
    monkeypatch.setattr(pair_writer, "read_table", die)
    with pytest.raises(Killed):
        main(["mm_rlhf", str(files), "--out", str(out)])
    assert not (out / PAIRS).exists() and not list(out.glob(".*.partial"))
    assert main(["mm_rlhf", str(files), "--out", str(out)]) == 0
    assert len(read_pairs(out)) == 32


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mm_rlhf", "none.jsonl"], "check PATH"),
        (["mm_rlhf", "dpo_pairs.jsonl", "--images", "nowhere"], "--images"),
        (["mm_rlhf", "dpo_pairs.jsonl", "--count", "0"], "at least 1"),
        (["povid", "dpo_pairs.jsonl"], "'bad_row': 32, 'video': 8"),
        (["povid", "empty.jsonl"], "got none; check PATH"),
        (["export", "nowhere"], "got none"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    assert main([*words, "--out", "out"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and message in told and told.count("\n") == 1
    if words[0] != "export":
        assert main(["mm_rlhf", "dpo_pairs.jsonl", "--out", "out"]) == 0, (
            "a mistake does not occupy the folder"
        )


def test_untrusted_text_does_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    good = {"image": "a.png", "question": "?", "chosen": "a", "rejected": "b"}
    rows = [good, {**good, "image": "\x1b]0;owned\x07[red]x.png"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        main(["mmpr", str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "out")]) == 0
    )
    printed = capsys.readouterr().out
    assert "\x1b]" not in printed and "\x07" not in printed and "[red]" in printed


MEMORY = """
import json, sys, threading
from multiprocessing import get_context
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from PIL import Image
from cluster.import_data import main

images = Path(sys.argv[1])
Image.new("RGB", (8, 8)).save(images / "a.png")
picture = (images / "a.png").read_bytes()
texts = [(name, pa.string()) for name in ("question", "chosen", "rejected")]
schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), *texts])

def rows(count, image):
    for number in range(count):
        text = f"{number} " * 400
        yield {"image": image, "question": "What?", "chosen": "yes " + text, "rejected": "no " + text}

def lines(path, count):
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\\n" for row in rows(count, "a.png"))

def items(path, count):
    with path.open("w") as file:
        file.writelines("[,"[number > 0] + json.dumps(row) for number, row in enumerate(rows(count, "a.png")))
        file.write("]")

def tables(writer, path, count):
    with writer(path, schema) as file:
        for _ in range(count // 1000):
            file.write_table(pa.Table.from_pylist(list(rows(1000, {"bytes": picture, "path": None})), schema=schema))

def parquet(path, count):
    tables(pq.ParquetWriter, path, count)

def arrow(path, count):
    tables(pa.ipc.new_stream, path, count)

def own_memory():
    # Without the pages of a mapped file, which the system takes back as it likes.
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) // 1024

def peak_of(work):
    seen, done = [own_memory()], threading.Event()
    def watch():
        while not done.wait(0.01):
            seen.append(own_memory())
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert work() == 0
    finally:
        done.set()
        watcher.join()
    return max(seen)

def measure(write, suffix):
    peaks = []
    for out, count in (("warm", 1000), ("small", 1000), ("large", 10000)):
        write(path := images / f"{count}.{suffix}", count)
        words = ["rlaif_v", str(path), "--images", str(images), "--out", str(images / f"{suffix}-{out}")]
        peaks.append(peak_of(lambda: main(words)))
    return peaks[1:]

cases = [(lines, "jsonl"), (items, "json"), (parquet, "parquet"), (arrow, "arrow")]
with get_context("fork").Pool(2, maxtasksperchild=1) as pool:  # one format must not grow into what another has freed
    print(json.dumps(pool.starmap(measure, cases, chunksize=1)))
"""


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """Ten times the rows, 40 MB of text (held at once they take 33 to 46 MB more): the peak must not show it.

    Allocators give back what is free, so that little else than what is held is in the peak.
    """
    allocators = {
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        cwd=ROOT, env={**os.environ, **allocators}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    peaks = json.loads(done.stdout.splitlines()[-1])
    assert len(peaks) == 4 and all(large - small < 25 for small, large in peaks), (
        done.stdout
    )
