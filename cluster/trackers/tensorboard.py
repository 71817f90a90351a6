"""TensorBoard files in RUN_DIR/tensorboard; every run writes them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
            show = partial(self._show, f"completions/picture_{number}", step)
            table.append(_line(row.cells(show)))
        self._board.add_text("completions", "\n".join(table), step)  # type: ignore[no-untyped-call]

    def _show(self, name: str, step: int, picture: Image.Image) -> str:
        """Write a picture; returns where it is."""
        pixels = np.asarray(picture)
        self._board.add_image(name, pixels, step, dataformats="HWC")  # type: ignore[no-untyped-call]
        return name

    def close(self, failed: bool) -> None:
        # Its files do not say how a run ended.
        self._board.close()  # type: ignore[no-untyped-call]


def _line(cells: Sequence[Any]) -> str:
    """A line of a Markdown table, in which text stays text."""
    escaped: list[str] = []
    for cell in cells:
        text = html.escape(_text(cell)).replace("|", "&#124;")
        escaped.append(" ".join(text.split()))
    return f"| {' | '.join(escaped)} |"


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:g}" if isinstance(cell, float) else str(cell)
