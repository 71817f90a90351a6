"""Plots of a set's figures as SVG for one HTML page. Labels are ours alone; no text of the data is drawn."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from common.anatomy import NEAR_DUPLICATE, Figures, evenly

CHOSEN, REJECTED, OTHER = "#2a9d8f", "#e4683f", "#5b7db1"
_INK = "#010203"
"""Stands for the colour of the page's text, which depends on light or dark mode."""

MAX_POINTS = 2000
MAX_BARS = 12
VIEW_NAMES = {
    "image": "own image",
    "blank": "blank image",
    "shuffled": "another image",
    "no_image": "no image",
}


def plots(figures: Figures) -> list[tuple[str, str]]:
    """(caption, SVG) of all that can be drawn."""
    found = []
    length, distance, reuse = (
        figures["length"],
        figures["distance"],
        figures["images"]["reuse"],
    )
    if length["histogram"]:
        found.append(
            (
                "Length of both sides; the outermost bars hold all beyond",
                _lengths(length["histogram"]),
            )
        )
        found.append(("Length gap, chosen − rejected", _gap(length["gap_histogram"])))
        found.append(
            (
                f"Word edit distance; near-duplicates below {1 - NEAR_DUPLICATE:.1f}",
                _distance(distance),
            )
        )
    if reuse:
        found.append(
            (
                "Pairs per image",
                _reuse({int(pairs): images for pairs, images in reuse.items()}),
            )
        )
    policy = figures["policy"]
    if policy and policy["points"]:
        found.append(
            (
                "Log-prob per token under the policy; above the line chosen is likelier",
                _points(policy["points"]),
            )
        )
    if policy and policy["grounding"]["views"]:
        found.append(
            (
                "Pairs ranked right by the policy, with 95 % intervals",
                _views(policy["grounding"]["views"]),
            )
        )
    return found


@contextmanager
def _axes(name: str, across: str, up: str) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on; the list then holds the SVG."""
    # A salt per plot: element ids of several drawings share one page.
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 9,
        **dict.fromkeys(
            (
                "text.color",
                "axes.labelcolor",
                "axes.edgecolor",
                "xtick.color",
                "ytick.color",
            ),
            _INK,
        ),
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    svg: list[str] = []
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        yield axes, svg
        buffer = io.StringIO()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = buffer.getvalue()
    svg.append(text[text.index("<svg") :].replace(_INK, "currentColor"))


def _bars(axes: Any, histogram: Figures, colours: dict[str, str]) -> None:
    edges = histogram["edges"]
    for name, colour in colours.items():
        axes.stairs(
            histogram["counts"][name],
            edges,
            fill=True,
            color=colour,
            alpha=0.55,
            label=name,
        )


def _lengths(histogram: Figures) -> str:
    with _axes("lengths", "words", "pairs") as (axes, svg):
        _bars(axes, histogram, {"chosen": CHOSEN, "rejected": REJECTED})
        axes.legend(frameon=False)
    return svg[0]


def _gap(histogram: Figures) -> str:
    with _axes("gap", "words", "pairs") as (axes, svg):
        _bars(axes, histogram, {"gap": OTHER})
        axes.axvline(0, color=_INK, linewidth=0.8, linestyle="--")
    return svg[0]


def _distance(distance: Figures) -> str:
    with _axes("distance", "share of words", "pairs") as (axes, svg):
        _bars(axes, distance["histogram"], {"distance": OTHER})
        axes.axvline(1 - NEAR_DUPLICATE, color=_INK, linewidth=0.8, linestyle="--")
    return svg[0]


def _reuse(reuse: dict[int, int]) -> str:
    """The last bar holds what is beyond `MAX_BARS`."""
    bars = dict.fromkeys(range(1, min(max(reuse), MAX_BARS) + 1), 0)
    for pairs, images in reuse.items():
        bars[min(pairs, MAX_BARS)] += images
    with _axes("reuse", f"pairs per image ({MAX_BARS}: or more)", "images") as (
        axes,
        svg,
    ):
        axes.bar(list(bars), list(bars.values()), color=OTHER, width=0.8)
        axes.set_xticks(list(bars))
        axes.set_xlim(0.4, max(len(bars), 4) + 0.6)
    return svg[0]


def _points(points: list[list[float]]) -> str:
    shown = [points[index] for index in evenly(len(points), MAX_POINTS)]
    rejected, chosen = [right for _, right in shown], [left for left, _ in shown]
    with _axes("points", "rejected, nats per token", "chosen, nats per token") as (
        axes,
        svg,
    ):
        axes.scatter(rejected, chosen, s=9, color=OTHER, alpha=0.5, linewidths=0)
        ends = (min(rejected + chosen), max(rejected + chosen))
        axes.plot(ends, ends, color=_INK, linewidth=0.8, linestyle="--")
    return svg[0]


def _views(views: Figures) -> str:
    with _axes("views", "", "ranked right") as (axes, svg):
        for offset, measure, colour in (
            (-0.18, "sum", OTHER),
            (0.18, "per_token", "#a0b3d1"),
        ):
            found = [view[measure] for view in views.values()]
            heights = [value["accuracy"] for value in found]
            errors = [
                [max(0.0, value["accuracy"] - value["low"]) for value in found],
                [max(0.0, value["high"] - value["accuracy"]) for value in found],
            ]
            places = [place + offset for place in range(len(found))]
            axes.bar(
                places, heights, 0.34, color=colour, label=measure.replace("_", " ")
            )
            axes.errorbar(
                places,
                heights,
                errors,
                fmt="none",
                ecolor=_INK,
                elinewidth=0.8,
                capsize=2,
            )
        axes.set_xticks(range(len(views)), [VIEW_NAMES[name] for name in views])
        axes.set_ylim(0, 1.18)
        axes.axhline(0.5, color=_INK, linewidth=0.8, linestyle="--")
        axes.legend(frameon=False, ncols=2, loc="upper right")
    return svg[0]
