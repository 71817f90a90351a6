"""Metrics of a run: `metrics.jsonl` (one line per learner step) and TensorBoard files, from the same numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from common.paths import replace_file


class MetricsWriter:
    """Writes step metrics. A resumed run first drops the lines of steps it is going to repeat."""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        """`first_step` is the next step that will be written, counted from 1."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._path = run_dir / "metrics.jsonl"
        if self._path.exists():
            kept = [
                line for line in read_lines(self._path) if line["step"] < first_step
            ]
            replace_file(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step)  # type: ignore[no-untyped-call]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one step, durably."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        for name, value in values.items():
            self._board.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._file.close()
        self._board.close()  # type: ignore[no-untyped-call]


def read_lines(path: Path) -> list[dict[str, float]]:
    """The whole lines of a metrics file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
