"""Every command that writes, with its output at a path, and what they need: for tests of outputs and of owners."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import evaluate, generate, import_data, report, train
from common.data.datasets import write_pairs
from common.data.images import ImageStore
from common.records import PreferencePair, Response
from common.shapes.prompts import caption_prompts

Command = Callable[[Path, Path], int]
"""Runs a command whose output lies in or at the second path; the first one is a pair set."""


def with_samples(pairs: Path, out: Path) -> int:
    words = ["common/shapes/policy", "--evaluation.suites", '["shapes"]']
    return evaluate.main([*words, "--samples", str(out / "page.html")])


def with_scores(pairs: Path, out: Path) -> int:
    words = ["common/shapes/policy", "--evaluation.suites", '["shapes"]']
    return evaluate.main([*words, "--out", str(out / "cards.json")])


def bdhs(pairs: Path, out: Path) -> int:
    return generate.main(["bdhs", "--out", str(out), "--count", "1"])


def povid(pairs: Path, out: Path) -> int:
    words = ["povid", "--corrupter", "rules", "--count", "1"]
    return generate.main([*words, "--out", str(out)])


def imported(pairs: Path, out: Path) -> int:
    exported = pairs.parent / "exported"
    return import_data.main(["trl", str(exported), "--out", str(out)])


def exported(pairs: Path, out: Path) -> int:
    return import_data.main(["export", str(pairs), "--out", str(out)])


def inspected(pairs: Path, out: Path) -> int:
    return import_data.main(["inspect", str(pairs), "--out", str(out / "page.html")])


def trained(pairs: Path, out: Path) -> int:
    return train.main(["--mixture.online_fraction=1", f"--run.dir={out}"])


def reported(pairs: Path, out: Path) -> int:
    return report.main([str(out)])


WRITERS: list[Command] = [
    with_samples,
    with_scores,
    bdhs,
    povid,
    imported,
    exported,
    inspected,
    trained,
]


def make_pairs(folder: Path) -> Path:
    """A pair set in `folder`, with its export beside it."""
    store = ImageStore(folder / "pairs" / "images")
    pairs = []
    for prompt in caption_prompts("train", 2, 5, store):
        answers = (Response(prompt.reference or ""), Response("No."))
        pairs.append(PreferencePair(prompt.id, prompt, *answers, source="test"))
    write_pairs(folder / "pairs", pairs)
    assert exported(folder / "pairs", folder / "exported") == 0
    return folder / "pairs"


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command prints."""
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in said, said
    assert said.endswith(f"{lines[0]}\n")
    return lines[0]
