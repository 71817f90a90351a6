"""Metrics of a run: `metrics.jsonl` (one line per learner step) and TensorBoard files, from the same numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from common.paths import replace_file, writing


class MetricsWriter:
    """Writes step metrics. A resumed run first drops the lines of steps it is going to repeat."""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        """`first_step` is the next step that will be written, counted from 1."""
        # Imports torch: not when a file that only reads metrics is imported.
        from torch.utils.tensorboard.writer import SummaryWriter

        path = run_dir / "metrics.jsonl"
        if path.exists():
            _drop_lines_from(path, first_step)
        self._path = path
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(  # type: ignore[no-untyped-call]
            str(run_dir / "tensorboard"), purge_step=first_step
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one step, durably."""
        line = {"step": step, **values}
        with writing(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        for name, value in values.items():
            self._board.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        with writing(self._path):
            self._file.close()
        self._board.close()  # type: ignore[no-untyped-call]


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
    kept = [line for line in read_lines(path) if line["step"] < first_step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    replace_file(path, text)
