"""inspect.html: what a preference set is made of, on one self-contained page; images and plots are inlined.

Whatever comes from the data is text to the template and is escaped there; only our own plots are markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from cluster.inspect.plots import CONDITION_NAMES, plots
from cluster.inspect.verdicts import percent, verdicts
from cluster.pages import Span, data_url, mark_differences, template
from common.data.anatomy import Figures, question_of
from common.data.words import distance, words
from common.errors import Refused
from common.records import PreferencePair

SHOWN_CHARACTERS = 1200
"""Longer texts are cut here; the page says how much is left out."""

FactRow = tuple[str, str, str]
"""Name, value and meaning of one figure."""


@dataclass(frozen=True, slots=True)
class Side:
    """One answer as shown. `left_out` counts the characters that are cut; `note` is a line of figures."""

    name: str
    spans: tuple[Span, ...]
    left_out: int
    note: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair as shown. `pictures` are data URLs, `missing` the reasons of images that could not be read."""

    id: str
    source: str
    question: str
    pictures: tuple[str, ...]
    missing: tuple[str, ...]
    sides: tuple[Side, Side]
    note: str


def render_page(figures: Figures, samples: Sequence[Sample]) -> str:
    """Render the whole page as HTML."""
    drawings = [(caption, Markup(svg)) for caption, svg in plots(figures)]
    return template("inspect.html.j2").render(
        figures=figures,
        verdicts=verdicts(figures),
        plots=drawings,
        facts=fact_rows(figures),
        sides=side_rows(figures),
        counts=count_tables(figures),
        samples=samples,
        view_names=CONDITION_NAMES,
    )


def side_rows(figures: Figures) -> list[tuple[str, str, str, str]]:
    """List (measure, chosen, rejected, chosen - rejected), each a mean with the middle half of the pairs."""
    measures = {"words": figures["length"]}
    policy = figures["policy"]
    if policy:
        measures["tokens"] = policy["tokens"]
        measures["log-prob, nats"] = policy["sum"]
        measures["log-prob per token"] = policy["per_token"]
    rows = []
    for name, sides in measures.items():
        chosen, rejected = spread(sides["chosen"]), spread(sides["rejected"])
        rows.append((name, chosen, rejected, spread(sides["gap"])))
    return rows


def spread(summary: Figures | None) -> str:
    """Format a mean with the first and the third quartile."""
    if summary is None:
        return "–"
    mean = summary["mean"]
    low, high = summary["quantiles"]["0.25"], summary["quantiles"]["0.75"]
    digits = 1 if abs(mean) >= 10 else 2
    return f"{mean:,.{digits}f} ({low:,.{digits}f} … {high:,.{digits}f})"


def fact_rows(figures: Figures) -> list[FactRow]:
    """List the figures of the set as (name, value, meaning)."""
    rows = [
        *_distance_rows(figures["distance"]),
        *_answer_rows(figures["yes_no"], figures["length"]),
        *_repeat_rows(figures["repeats"]),
        *_image_rows(figures["images"]),
    ]
    num_cut = figures["distance"]["num_cut"]
    if num_cut:
        max_words = figures["distance"]["max_words"]
        meaning = f"compared over their first {max_words:,} words"
        rows.append(("very long answers", f"{num_cut:,}", meaning))
    return rows


def _distance_rows(distances: Figures) -> list[FactRow]:
    return [
        (
            "word edit distance",
            spread(distances["words"]),
            "0 equal words, 1 nothing in common; mean and middle half",
        ),
        (
            "near-duplicates",
            percent(distances["near_duplicate_frac"]),
            f"sides alike from {distances['near_duplicate_from']} on",
        ),
        (
            "identical sides",
            percent(distances["identical_frac"]),
            "",
        ),
    ]


def _answer_rows(yes_no: Figures, length: Figures) -> list[FactRow]:
    says_yes = percent(yes_no["chosen_yes_frac"])
    return [
        (
            "yes/no rows",
            percent(yes_no["frac"]),
            f"{says_yes} of them choose yes",
        ),
        (
            "chosen is longer",
            percent(length["chosen_longer_frac"]),
            "of the pairs that differ in length",
        ),
    ]


def _repeat_rows(repeats: Figures) -> list[FactRow]:
    return [
        (
            "different prompts",
            _count(repeats["prompt"]["num_distinct"]),
            "question and images",
        ),
        (
            "different questions",
            _count(repeats["question"]["num_distinct"]),
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
    ]


def _image_rows(images: Figures) -> list[FactRow]:
    return [
        (
            "images",
            _count(images["num_images"]),
            f"{_count(images['num_missing'])} files missing",
        ),
        (
            "pairs without an image",
            _count(images["num_pairs_without"]),
            "",
        ),
        (
            "pairs with several images",
            _count(images["num_pairs_several"]),
            "",
        ),
    ]


def _count(number: int) -> str:
    return f"{number:,}"


def count_tables(figures: Figures) -> list[tuple[str, Mapping[str, Any]]]:
    """List (title, counts by name) of every histogram that is not empty."""
    tables: dict[str, Mapping[str, Any]] = {
        "Sources": figures["sources"],
        "Weight versions": figures["weight_versions"],
        "Rows left out while reading": figures["dropped_reading"],
        "Dropped when the set was made": figures["dropped_making"],
    }
    policy = figures["policy"]
    if policy:
        tables["Pairs the policy cannot read"] = policy["dropped"]
        for view, dropped in policy["grounding"]["dropped"].items():
            tables[f"Not measured with {CONDITION_NAMES[view]}"] = dropped
    return [(title, counts) for title, counts in tables.items() if counts]


def sample_of(pair: PreferencePair, notes: Sequence[str] = ("", "", "")) -> Sample:
    """Show a pair; `notes` are lines of figures for chosen, rejected and both."""
    chosen, rejected = pair.chosen.text, pair.rejected.text
    # Only what is shown is compared, whatever follows in the longer text.
    chosen_spans, rejected_spans = mark_differences(
        chosen[:SHOWN_CHARACTERS],
        rejected[:SHOWN_CHARACTERS],
    )
    edit_distance = distance(words(chosen), words(rejected))
    pictures, missing = _pictures(pair)
    return Sample(
        id=pair.id,
        source=pair.source,
        question=_shown_question(pair),
        pictures=pictures,
        missing=missing,
        sides=(
            _side("chosen", chosen, chosen_spans, notes[0]),
            _side("rejected", rejected, rejected_spans, notes[1]),
        ),
        note=_joined(f"edit distance {edit_distance:.2f}", notes[2]),
    )


def _side(name: str, text: str, spans: tuple[Span, ...], note: str) -> Side:
    num_words = len(words(text))
    unit = "word" if num_words == 1 else "words"
    return Side(
        name=name,
        spans=spans,
        left_out=max(0, len(text) - SHOWN_CHARACTERS),
        note=_joined(f"{num_words:,} {unit}", note),
    )


def _joined(first: str, second: str) -> str:
    return f"{first} · {second}" if second else first


def _pictures(pair: PreferencePair) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Data URLs of the pair's images, and the reasons of those that cannot be shown."""
    urls: list[str] = []
    missing: list[str] = []
    for ref in pair.prompt.images:
        try:
            urls.append(data_url(ref))
        except Refused as error:
            missing.append(error.reason)
    return tuple(urls), tuple(missing)


def _shown_question(pair: PreferencePair) -> str:
    question = question_of(pair.prompt)
    left_out = len(question) - SHOWN_CHARACTERS
    if left_out <= 0:
        return question
    return f"{question[:SHOWN_CHARACTERS]} … ({left_out:,} more characters)"
