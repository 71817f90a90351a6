"""Metrics of a run: `metrics.jsonl`, one line per learner step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from common.paths import replace_file, writing


class MetricsWriter:
    """Writes step metrics. A resumed run first drops the lines of steps that it is going to repeat.

    Args:
        run_dir: the folder of the run.
        first_step: the next step that will be written, counted from 1.
    """

    def __init__(self, run_dir: Path, first_step: int) -> None:
        path = run_dir / "metrics.jsonl"
        if path.exists():
            _drop_lines_from(path, first_step)
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one step, durably."""
        line = {"step": step, **values}
        with writing(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing(self._path):
            self._file.close()


def read_lines(path: Path) -> list[dict[str, float]]:
    """The whole lines of a metrics file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            # Cut by a crash.
            continue
    return lines


def _drop_lines_from(path: Path, first_step: int) -> None:
    kept = []
    for line in read_lines(path):
        if line["step"] < first_step:
            kept.append(json.dumps(line) + "\n")
    replace_file(path, "".join(kept))
