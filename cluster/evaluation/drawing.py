"""Drawings for our pages: SVG elements in the colours of the page around them.

Labels are ours alone; no text of the data is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#010203"
"""Stands for the colour of the page's text, which depends on light or dark mode."""

NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
"""The same figures give the same bytes."""


@contextmanager
def axes_of(name: str, across: str, up: str) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on; after the block the list holds the SVG.

    `name` differs from that of every other drawing on the page.
    """
    svg: list[str] = []
    with matplotlib.rc_context(_style(name)):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        yield axes, svg
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    text = buffer.getvalue()
    # The page needs the element alone, without XML declaration and doctype.
    element = text[text.index("<svg") :]
    svg.append(element.replace(INK, "currentColor"))


def _style(name: str) -> dict[Any, Any]:
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        # A salt per plot: element ids of several drawings share one page.
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    for part in ("text", "xtick", "ytick"):
        style[f"{part}.color"] = INK
    style["axes.labelcolor"] = INK
    style["axes.edgecolor"] = INK
    return style
