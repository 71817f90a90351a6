"""Words of the commands that open a model directory, for tests of what they say about it."""

from __future__ import annotations

from pathlib import Path


def train_words(model: Path, tmp_path: Path) -> list[str]:
    words = ["--model.path", str(model), "--run.dir", str(tmp_path / "run")]
    return [*words, "--mixture.online_fraction", "1"]


def evaluate_words(model: Path, tmp_path: Path) -> list[str]:
    return [str(model), "--evaluation.suites", '["shapes"]', "--scenes", "2"]


def generate_words(model: Path, tmp_path: Path) -> list[str]:
    words = ["bdhs", "--model", str(model), "--out", str(tmp_path / "set")]
    return [*words, "--count", "2", "--rho", "0.5"]
