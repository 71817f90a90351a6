"""What every HTML page shares: one template environment, marked text, images inlined as data URLs.

Whatever comes from data is text to the templates and is escaped there.
"""

from __future__ import annotations

import base64
import io
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

from jinja2 import (
    Environment,
    FileSystemLoader,
    StrictUndefined,
    Template,
    select_autoescape,
)
from PIL import Image

from common.data import images
from common.data.words import WORD, words
from common.errors import Refused
from common.records import ImageRef, Prompt

TEMPLATES = Path(__file__).parent / "templates"
IMAGE_SIDE = 240
"""Pixels of the longer side of an inlined image."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text; `kind` names how it is marked, "" for plain text."""

    text: str
    kind: str = ""


def marked(text: str, marks: list[tuple[int, int, str]]) -> tuple[Span, ...]:
    """Cut `text` into spans by (begin, end, kind) marks; of overlapping marks the first wins."""
    spans: list[Span] = []
    cursor = 0
    for begin, end, kind in sorted(marks):
        # An earlier mark covers this one.
        if end <= cursor:
            continue
        begin = max(begin, cursor)
        spans.append(Span(text[cursor:begin]))
        spans.append(Span(text[begin:end], kind))
        cursor = end
    spans.append(Span(text[cursor:]))
    # Marks that touch leave nothing between them.
    return tuple(span for span in spans if span.text)


def mark_differences(
    chosen: str, rejected: str
) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Cut both texts into spans and mark the words that the other text does not have at their place.

    Marked spans of the chosen text are of kind "chosen", those of the rejected text of kind "rejected".
    """
    chosen_marks: list[tuple[int, int, str]] = []
    rejected_marks: list[tuple[int, int, str]] = []
    chosen_places = _word_places(chosen)
    rejected_places = _word_places(rejected)
    # From 200 words on difflib anchors on rare words only, which bounds the time for repetitive texts.
    matcher = SequenceMatcher(None, words(chosen), words(rejected))
    for kind, begin, end, other_begin, other_end in matcher.get_opcodes():
        if kind == "equal":
            continue
        if begin < end:
            first, last = chosen_places[begin], chosen_places[end - 1]
            chosen_marks.append((first[0], last[1], "chosen"))
        if other_begin < other_end:
            first, last = rejected_places[other_begin], rejected_places[other_end - 1]
            rejected_marks.append((first[0], last[1], "rejected"))
    return marked(chosen, chosen_marks), marked(rejected, rejected_marks)


def _word_places(text: str) -> list[tuple[int, int]]:
    """First and past-the-last character of every word, in the order of `words`."""
    return [match.span() for match in WORD.finditer(text)]


def data_url(ref: ImageRef) -> str:
    """An image as a data URL, at most `IMAGE_SIDE` pixels a side.

    Raises:
        Refused: the image cannot be read.
    """
    image = images.read(ref)
    # Small pictures are kept to the pixel.
    if max(image.size) <= IMAGE_SIDE:
        return _encoded(image, "png")
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return _encoded(image, "jpeg", quality=82)


def pictures_of(prompt: Prompt) -> tuple[str, ...]:
    """The prompt's images as data URLs; those that cannot be read are left out."""
    urls = []
    for ref in prompt.images:
        with suppress(Refused):
            urls.append(data_url(ref))
    return tuple(urls)


def template(name: str) -> Template:
    """A template of `cluster/templates`."""
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        # Texts of a data set may hold anything, scripts included.
        autoescape=select_autoescape(("html", "j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def _encoded(image: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind};base64,{encoded}"
