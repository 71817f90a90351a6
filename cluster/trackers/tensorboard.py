"""TensorBoard files in RUN_DIR/tensorboard; every run writes them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cluster.trackers.base import HEADS, Row


class TensorBoard:
    """Writes scalars; a table of completions is a text, its pictures are images of the same step."""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        # Here, because it imports torch.
        from torch.utils.tensorboard.writer import SummaryWriter

        # It drops the steps that a resume repeats.
        folder = str(run_dir / "tensorboard")
        self._board = SummaryWriter(folder, purge_step=first_step)  # type: ignore[no-untyped-call]

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def completions(self, step: int, rows: Sequence[Row]) -> None:
        table = [_line(HEADS), _line(["---"] * len(HEADS))]
        for number, row in enumerate(rows):
            picture = "" if row.picture is None else f"completions/picture_{number}"
            score = "" if row.score is None else f"{row.score:g}"
            said = [row.prompt, row.completion, row.side, score, row.note]
            table.append(_line([str(step), *said, picture]))
            if row.picture is not None:
                pixels = np.asarray(row.picture)
                self._board.add_image(picture, pixels, step, dataformats="HWC")  # type: ignore[no-untyped-call]
        self._board.add_text("completions", "\n".join(table), step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._board.close()  # type: ignore[no-untyped-call]


def _line(cells: Sequence[str]) -> str:
    """A line of a Markdown table, in which text stays text."""
    escaped: list[str] = []
    for cell in cells:
        text = html.escape(cell).replace("|", "&#124;")
        escaped.append(" ".join(text.split()))
    return f"| {' | '.join(escaped)} |"
