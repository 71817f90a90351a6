"""samples.html: what the policy said before and after, beside the picture, with every wrong word marked.

One self-contained file, pictures inlined. The scenes are the first ones of the split, not picked; the caption with the
worst faults comes first.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import (
    Environment,
    FileSystemLoader,
    StrictUndefined,
    Template,
    select_autoescape,
)

from common.protocols import JudgeError
from common.records import RolloutGroup
from common.shapes.claims import Claim, Comparison, compare_mentions
from common.shapes.language import Mention, parse_caption
from common.shapes.scenes import SHAPES, Scene
from common.shapes.truth import scene_of
from reward.scorecard import Answers, Scorecard

TEMPLATES = Path(__file__).parent / "templates"
METRICS = {
    "chair_s": ("CHAIR_s", "lower", "captions that make something up"),
    "chair_i": ("CHAIR_i", "lower", "mentions of things that are not there"),
    "recall": ("recall", "higher", "true objects that are named"),
    "pope_accuracy": ("POPE accuracy", "higher", "mean of three splits"),
    "pope_f1": ("POPE F1", "higher", "mean of three splits"),
    "pope_yes_ratio": ("POPE yes ratio", "", "0.5 is balanced"),
    "win_rate": ("win rate", "higher", "against the start policy"),
    "mean_length": ("length", "", "words per caption"),
}
"""Scorecard field -> name, which way is better, meaning; in the order shown."""

_SHAPE = re.compile(rf"\b(?:{'|'.join(SHAPES)})s?\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of caption; `kind` is "" for plain text, "made-up" or "wrong"."""

    text: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Caption:
    """One marked caption and the names of the objects that it misses."""

    spans: tuple[Span, ...]
    missed: tuple[str, ...] = ()
    faults: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of the page; `image` is a data URI or "", `start` is None when only one policy was asked."""

    id: str
    image: str
    final: Caption
    start: Caption | None


def write_samples(
    path: Path,
    final: tuple[Scorecard, Answers],
    start: tuple[Scorecard, Answers] | None = None,
    limit: int = 24,
    title: str = "Samples",
) -> None:
    """Write the page for the first `limit` captioned scenes."""
    before = {group.prompt.id: group for group in start[1].captions} if start else {}
    samples = [
        _sample(group, before.get(group.prompt.id))
        for group in final[1].captions[:limit]
    ]
    samples.sort(key=lambda sample: (-sample.final.faults, sample.id))
    cards = (start[0], final[0]) if start else (final[0],)
    names = ("before", "after") if start else ("grounding",)
    grounding = [
        (n, line, bad)
        for n, card in zip(names, cards, strict=True)
        for line, bad in grounding_lines(card)
    ]
    html = _template().render(
        title=title,
        samples=samples,
        rows=metric_rows(cards),
        card=final[0],
        compared=bool(start),
        grounding=grounding,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def metric_rows(
    cards: Sequence[Scorecard],
) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """(name, better direction, meaning, [(value, interval) per card]) for each metric that any card has."""
    rows = []
    for key, (name, better, meaning) in METRICS.items():
        if any(getattr(card, key) is not None for card in cards):
            rows.append((name, better, meaning, [_cell(card, key) for card in cards]))
    return rows


def grounding_lines(card: Scorecard) -> list[tuple[str, bool]]:
    """What the grounding gate found, in words, and whether the line is a warning."""
    found = card.grounding
    if found is None:
        return []
    if found.gain is None:
        return [(f"grounding not measured: {found.missing}", False)]
    views = ", ".join(
        f"{value:.3f} with the {view} picture" for view, value in found.accuracy.items()
    )
    low, high = found.intervals["gain"]
    told = (
        f"grounding: right in {views}; gain {found.gain:.3f} ({low:.3f} – {high:.3f})"
    )
    what = found.ranked_by.replace("_", " ").replace("logp", "log-prob")
    lines = [(f"{told}, {found.num_pairs} pairs ranked by {what}", False)]
    return lines + ([(f"WARNING {found.warning}", True)] if found.warning else [])


def _cell(card: Scorecard, key: str) -> tuple[str, str]:
    value, digits = getattr(card, key), 1 if key == "mean_length" else 3
    if value is None:
        return "–", ""
    low, high = card.intervals.get(key, (value, value))
    return f"{value:.{digits}f}", f"{low:.{digits}f} – {high:.{digits}f}"


def mark(text: str, scene: Scene | None) -> Caption:
    """Mark what is wrong in a caption; without a scene it stays plain."""
    if scene is None:
        return Caption((Span(text),))
    places = list(_mentions(text))
    comparison = compare_mentions([mention for *_, mention in places], scene)
    marks: list[tuple[int, int, str]] = []
    for (first, hit, end, mention), claim in zip(
        places, comparison.claims, strict=True
    ):
        marks += _marks(text, first, hit, end, mention, claim)
    spans, cursor = [], 0
    for begin, end, kind in sorted(marks):
        if end > cursor:
            begin = max(begin, cursor)
            spans += [Span(text[cursor:begin]), Span(text[begin:end], kind)]
            cursor = end
    spans.append(Span(text[cursor:]))
    missed = tuple(
        f"{item.colour} {item.shape} ({item.place})" for item in comparison.missed
    )
    return Caption(
        tuple(span for span in spans if span.text), missed, _faults(comparison)
    )


def _faults(comparison: Comparison) -> int:
    """Rough weight for sorting: made up before missed before wrong."""
    made_up = comparison.count("hallucinated", "repeated")
    return 100 * made_up + 10 * len(comparison.missed) + comparison.num_wrong_attributes


def _mentions(text: str) -> list[tuple[int, tuple[int, int], int, Mention]]:
    """(start of the words before, where the shape stands, end of the words after, mention), as parse_caption cuts."""
    found = []
    for sentence in re.finditer(r"[^.!?\n]+", text):
        hits = [
            hit.span()
            for hit in _SHAPE.finditer(text, sentence.start(), sentence.end())
        ]
        firsts = [sentence.start(), *(end for _, end in hits[:-1])]
        ends = [*(begin for begin, _ in hits[1:]), sentence.end()]
        for first, hit, end in zip(firsts, hits, ends, strict=False):
            found += [
                (first, hit, end, mention) for mention in parse_caption(text[first:end])
            ]
    return found


def _marks(
    text: str,
    first: int,
    hit: tuple[int, int],
    end: int,
    mention: Mention,
    claim: Claim,
) -> list[tuple[int, int, str]]:
    colours = [
        m.span()
        for m in re.finditer(rf"(?i)\b{mention.colour}\b", text[: hit[0]])
        if m.start() >= first
    ]
    pattern = (
        (mention.place or "")
        .replace(" ", "[ -]")
        .replace("center", "(?:center|middle)")
    )
    place = (
        re.compile(rf"(?i)\b{pattern}\b").search(text, hit[1], end) if pattern else None
    )
    if claim.kind in ("hallucinated", "repeated"):
        begin = colours[-1][0] if colours else hit[0]
        return [(begin, place.end() if place else hit[1], "made-up")]
    wrong = [(*colours[-1], "wrong")] if "colour" in claim.wrong and colours else []
    return wrong + (
        [(*place.span(), "wrong")] if "place" in claim.wrong and place else []
    )


def _sample(final: RolloutGroup, start: RolloutGroup | None) -> Sample:
    try:
        scene = scene_of(final.prompt)
    except JudgeError:
        scene = None
    return Sample(
        final.prompt.id,
        next((_data_uri(Path(image.path)) for image in final.prompt.images), ""),
        mark(final.completions[0].text, scene),
        mark(start.completions[0].text, scene) if start else None,
    )


def _data_uri(path: Path) -> str:
    kind = path.suffix.lstrip(".").replace("jpg", "jpeg") or "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


@cache
def _template() -> Template:
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader,
        autoescape=select_autoescape(("html", "j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("samples.html.j2")
