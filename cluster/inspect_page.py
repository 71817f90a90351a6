"""inspect.html: what a preference set is made of, on one self-contained page; images and plots are inlined.

Whatever comes from the data is text to the template and is escaped there; only our own plots are markup.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from cluster.inspect_plots import VIEW_NAMES, plots
from cluster.inspect_verdicts import percent, verdicts
from common import images
from common.anatomy import Figures, question_of
from common.errors import Refused
from common.records import ImageRef, PreferencePair
from common.words import WORD, distance, words

TEMPLATES = Path(__file__).parent / "templates"
IMAGE_SIDE = 240
"""Pixels of the longer side of an inlined image."""
SHOWN_CHARACTERS = 1200
"""Longer texts are shown up to here, with a word about the rest."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of an answer; `differs` when the other side does not say it there."""

    text: str
    differs: bool = False


@dataclass(frozen=True, slots=True)
class Side:
    """One answer as shown; `left_out` characters are not. `note` is a line of figures."""

    name: str
    spans: tuple[Span, ...]
    left_out: int
    note: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair as shown. `pictures` are data URLs, `missing` the reasons of those that could not be read."""

    id: str
    source: str
    question: str
    pictures: tuple[str, ...]
    missing: tuple[str, ...]
    sides: tuple[Side, Side]
    note: str


def render_page(figures: Figures, samples: Sequence[Sample]) -> str:
    """The whole page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(("html", "j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("inspect.html.j2").render(
        figures=figures,
        verdicts=verdicts(figures),
        plots=[(caption, Markup(svg)) for caption, svg in plots(figures)],
        facts=fact_rows(figures),
        sides=side_rows(figures),
        counts=count_tables(figures),
        samples=samples,
        view_names=VIEW_NAMES,
    )


def side_rows(figures: Figures) -> list[tuple[str, str, str, str]]:
    """(what, chosen, rejected, chosen - rejected): means with the middle half of the pairs."""
    rows = [("words", figures["length"])]
    policy = figures["policy"]
    if policy:
        rows += [("tokens", policy["tokens"]), ("log-prob, nats", policy["sum"])]
        rows += [("log-prob per token", policy["per_token"])]
    return [
        (name, _spread(both["chosen"]), _spread(both["rejected"]), _spread(both["gap"]))
        for name, both in rows
    ]


def _spread(found: Figures | None) -> str:
    if found is None:
        return "–"
    digits = 1 if abs(found["mean"]) >= 10 else 2
    low, high = found["quantiles"]["0.25"], found["quantiles"]["0.75"]
    return f"{found['mean']:,.{digits}f} ({low:,.{digits}f} … {high:,.{digits}f})"


def fact_rows(figures: Figures) -> list[tuple[str, str, str]]:
    """(what, value, meaning)."""
    repeats, seen, far, yes_no = (
        figures[name] for name in ("repeats", "images", "distance", "yes_no")
    )
    rows = [
        (
            "word edit distance",
            _spread(far["words"]),
            "0 equal words, 1 nothing in common; mean and middle half",
        ),
        (
            "near-duplicates",
            percent(far["near_duplicate_frac"]),
            f"sides alike from {far['near_duplicate_from']} on",
        ),
        ("identical sides", percent(far["identical_frac"]), ""),
        (
            "yes/no rows",
            percent(yes_no["frac"]),
            f"{percent(yes_no['chosen_yes_frac'])} of them choose yes",
        ),
        (
            "chosen is longer",
            percent(figures["length"]["chosen_longer_frac"]),
            "of the pairs that differ in length",
        ),
        (
            "different prompts",
            f"{repeats['prompt']['num_distinct']:,}",
            "question and images",
        ),
        (
            "different questions",
            f"{repeats['question']['num_distinct']:,}",
            "whatever the image",
        ),
        (
            "repeated chosen answers",
            percent(repeats["chosen"]["repeated_frac"]),
            "some other pair has the same",
        ),
        (
            "repeated rejected answers",
            percent(repeats["rejected"]["repeated_frac"]),
            "some other pair has the same",
        ),
        (
            "rejected here, chosen there",
            percent(repeats["both_sides_frac"]),
            "for the same prompt",
        ),
        ("images", f"{seen['num_images']:,}", f"{seen['num_missing']:,} files missing"),
        ("pairs without an image", f"{seen['num_pairs_without']:,}", ""),
        ("pairs with several images", f"{seen['num_pairs_several']:,}", ""),
    ]
    if far["num_cut"]:
        rows.append(
            (
                "very long answers",
                f"{far['num_cut']:,}",
                f"compared over their first {far['max_words']:,} words",
            )
        )
    return rows


def count_tables(figures: Figures) -> list[tuple[str, Mapping[str, Any]]]:
    """(title, counts by name) of all that is not empty."""
    tables: list[tuple[str, Mapping[str, Any]]] = [
        ("Sources", figures["sources"]),
        ("Weight versions", figures["weight_versions"]),
        ("Rows left out while reading", figures["dropped_reading"]),
        ("Dropped when the set was made", figures["dropped_making"]),
    ]
    policy = figures["policy"]
    if policy:
        tables.append(("Pairs the policy cannot read", policy["dropped"]))
        for name, dropped in policy["grounding"]["dropped"].items():
            tables.append((f"Not measured with {VIEW_NAMES[name]}", dropped))
    return [(title, counts) for title, counts in tables if counts]


def sample_of(pair: PreferencePair, notes: Sequence[str] = ("", "", "")) -> Sample:
    """A pair as the page shows it; `notes` are lines of figures for chosen, rejected and both."""
    pictures, missing = [], []
    for ref in pair.prompt.images:
        try:
            pictures.append(picture_url(ref))
        except Refused as error:
            missing.append(error.reason)
    texts = [pair.chosen.text, pair.rejected.text]
    marked = mark(*(text[:SHOWN_CHARACTERS] for text in texts))
    sides = [
        Side(
            name,
            spans,
            max(0, len(text) - SHOWN_CHARACTERS),
            " · ".join(filter(None, (_words(text), note))),
        )
        for name, spans, text, note in zip(
            ("chosen", "rejected"), marked, texts, notes, strict=False
        )
    ]
    apart = f"edit distance {distance(*map(words, texts)):.2f}"
    note = " · ".join(filter(None, (apart, notes[2])))
    question = question_of(pair.prompt)
    if len(question) > SHOWN_CHARACTERS:
        question = f"{question[:SHOWN_CHARACTERS]} … ({len(question) - SHOWN_CHARACTERS:,} more characters)"
    return Sample(
        pair.id,
        pair.source,
        question,
        tuple(pictures),
        tuple(missing),
        (sides[0], sides[1]),
        note,
    )


def _words(text: str) -> str:
    num = len(words(text))
    return f"{num:,} word{'' if num == 1 else 's'}"


def picture_url(ref: ImageRef) -> str:
    """An image as data URL, at most `IMAGE_SIDE` pixels a side (Refused when it cannot be used)."""
    image = images.read(ref)
    small = max(image.size) <= IMAGE_SIDE
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    kind = "png" if small else "jpeg"
    image.save(buffer, kind, **({} if small else {"quality": 82}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def mark(chosen: str, rejected: str) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Both texts cut into spans; words that do not stand in the other text at their place differ."""
    places = [
        [found.span() for found in WORD.finditer(text)] for text in (chosen, rejected)
    ]
    left, right = words(chosen), words(rejected)
    # From 200 words on difflib anchors on rare words only, which bounds the time for repetitive texts.
    blocks = SequenceMatcher(None, left, right).get_opcodes()
    differing = [
        (begin, end, first, last)
        for kind, begin, end, first, last in blocks
        if kind != "equal"
    ]
    return (
        _spans(chosen, places[0], [(begin, end) for begin, end, _, _ in differing]),
        _spans(rejected, places[1], [(begin, end) for _, _, begin, end in differing]),
    )


def _spans(
    text: str, places: list[tuple[int, int]], differing: list[tuple[int, int]]
) -> tuple[Span, ...]:
    spans, cursor = [], 0
    for first, last in differing:
        if first < last:
            begin, end = places[first][0], places[last - 1][1]
            spans += [Span(text[cursor:begin]), Span(text[begin:end], True)]
            cursor = end
    spans.append(Span(text[cursor:]))
    return tuple(span for span in spans if span.text)
