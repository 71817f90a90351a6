"""The benchmark of large data sets measures what it says, on small ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.data_start import make_pairs, make_prompts, measure


@pytest.mark.parametrize(
    ("kind", "num_records"),
    [("prompts", 600), ("held_out", 540), ("pairs", 700), ("objects", 700)],
)
def test_each_kind_is_opened_and_read(
    tmp_path: Path, kind: str, num_records: int
) -> None:
    if kind in ("prompts", "held_out"):
        make_prompts(tmp_path, 600)
    else:
        make_pairs(tmp_path, 700)
    figures = measure(kind, tmp_path)
    # All prompts about a picture are held out together, so the share is met.
    assert figures["records"] == num_records
    assert figures["open_s"] > 0 and figures["ms_per_record"] >= 0


def test_one_json_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.data_start", "--folder", str(tmp_path)]
    words += ["--prompts=50", "--pairs=50", "--objects=50"]
    answer = subprocess.run(words, check=True, capture_output=True, text=True)
    figures = json.loads(answer.stdout.splitlines()[-1])
    assert figures["pairs"]["records"] == 50
