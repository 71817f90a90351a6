"""Plots of a set's figures as SVG for one HTML page. Labels are ours alone; no text of the data is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.evaluation.drawing import INK, axes_of
from common.data.anatomy import NEAR_DUPLICATE, Figures, evenly

CHOSEN, REJECTED, OTHER = "#2a9d8f", "#e4683f", "#5b7db1"
MAX_POINTS = 2000
MAX_BARS = 12
CONDITION_NAMES = {
    "image": "own image",
    "blank": "blank image",
    "shuffled": "another image",
    "no_image": "no image",
}


def plots(figures: Figures) -> list[tuple[str, str]]:
    """Draw all that the figures allow, as (caption, SVG)."""
    drawings = [*_text_plots(figures), *_image_plots(figures)]
    if figures["policy"]:
        drawings += _policy_plots(figures["policy"])
    return drawings


def _text_plots(figures: Figures) -> Iterator[tuple[str, str]]:
    length = figures["length"]
    # An empty set has no histograms.
    if not length["histogram"]:
        return
    yield (
        "Length of both sides; the outermost bars hold all beyond",
        _lengths(length["histogram"]),
    )
    yield (
        "Length gap, chosen − rejected",
        _gap(length["gap_histogram"]),
    )
    yield (
        f"Word edit distance; near-duplicates below {1 - NEAR_DUPLICATE:.1f}",
        _distance(figures["distance"]["histogram"]),
    )


def _image_plots(figures: Figures) -> Iterator[tuple[str, str]]:
    reuse = figures["images"]["reuse"]
    if reuse:
        # JSON keys are text.
        num_images = {int(pairs): count for pairs, count in reuse.items()}
        yield "Pairs per image", _reuse(num_images)


def _policy_plots(policy: Figures) -> Iterator[tuple[str, str]]:
    if policy["points"]:
        yield (
            "Log-prob per token under the policy; above the line chosen is likelier",
            _points(policy["points"]),
        )
    views = policy["grounding"]["views"]
    if views:
        yield (
            "Pairs ranked right by the policy, with 95 % intervals",
            _views(views),
        )


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
    with axes_of("lengths", "words", "pairs") as (axes, svg):
        _bars(axes, histogram, {"chosen": CHOSEN, "rejected": REJECTED})
        axes.legend(frameon=False)
    return svg[0]


def _gap(histogram: Figures) -> str:
    with axes_of("gap", "words", "pairs") as (axes, svg):
        _bars(axes, histogram, {"gap": OTHER})
        axes.axvline(0, color=INK, linewidth=0.8, linestyle="--")
    return svg[0]


def _distance(histogram: Figures) -> str:
    with axes_of("distance", "share of words", "pairs") as (axes, svg):
        _bars(axes, histogram, {"distance": OTHER})
        axes.axvline(1 - NEAR_DUPLICATE, color=INK, linewidth=0.8, linestyle="--")
    return svg[0]


def _reuse(num_images: dict[int, int]) -> str:
    """Bars of images by the number of pairs that use them; the last bar holds all from `MAX_BARS` on."""
    num_bars = min(max(num_images), MAX_BARS)
    heights = dict.fromkeys(range(1, num_bars + 1), 0)
    for num_pairs, count in num_images.items():
        heights[min(num_pairs, MAX_BARS)] += count
    across = f"pairs per image ({MAX_BARS}: or more)"
    with axes_of("reuse", across, "images") as (axes, svg):
        axes.bar(list(heights), list(heights.values()), color=OTHER, width=0.8)
        axes.set_xticks(list(heights))
        axes.set_xlim(0.4, max(num_bars, 4) + 0.6)
    return svg[0]


def _points(points: list[list[float]]) -> str:
    chosen: list[float] = []
    rejected: list[float] = []
    for place in evenly(len(points), MAX_POINTS):
        chosen.append(points[place][0])
        rejected.append(points[place][1])
    across, up = "rejected, nats per token", "chosen, nats per token"
    with axes_of("points", across, up) as (axes, svg):
        axes.scatter(rejected, chosen, s=9, color=OTHER, alpha=0.5, linewidths=0)
        values = chosen + rejected
        ends = (min(values), max(values))
        axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle="--")
    return svg[0]


def _views(views: Figures) -> str:
    with axes_of("views", "", "ranked right") as (axes, svg):
        _accuracy_bars(axes, views, "sum", OTHER, -0.18)
        _accuracy_bars(axes, views, "per_token", "#a0b3d1", 0.18)
        names = [CONDITION_NAMES[view] for view in views]
        axes.set_xticks(range(len(views)), names)
        axes.set_ylim(0, 1.18)
        axes.axhline(0.5, color=INK, linewidth=0.8, linestyle="--")
        axes.legend(frameon=False, ncols=2, loc="upper right")
    return svg[0]


def _accuracy_bars(
    axes: Any, views: Figures, measure: str, colour: str, offset: float
) -> None:
    places: list[float] = []
    heights: list[float] = []
    below: list[float] = []
    above: list[float] = []
    for place, view in enumerate(views.values()):
        accuracy = view[measure]["accuracy"]
        places.append(place + offset)
        heights.append(accuracy)
        # Wilson's bounds can miss an accuracy of 0 or 1 by a rounding error.
        below.append(max(0.0, accuracy - view[measure]["low"]))
        above.append(max(0.0, view[measure]["high"] - accuracy))
    label = measure.replace("_", " ")
    axes.bar(places, heights, 0.34, color=colour, label=label)
    axes.errorbar(
        places,
        heights,
        [below, above],
        fmt="none",
        ecolor=INK,
        elinewidth=0.8,
        capsize=2,
    )
