"""What an importer is made of: a Draft per pair it finds, and helpers that read fields of untrusted rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import Refused
from common.importers.readers import DataFile, find_files
from common.records import Dropped, Message, Part, PreferencePair

MARKER = "<image>"


@dataclass(frozen=True, slots=True)
class Draft:
    """What a row says, unchecked: `build` reads the images and refuses what breaks a limit.

    `images` holds what `image_intake.ImageIntake.add` takes. A set of prompts has its reference under `chosen`.
    `tag` tells drafts of one row apart; `own_id` is the row's id, kept as part of ours. `kept` is a pair of our own
    that lacks only its images; the other fields but `images` then do not matter.
    """

    messages: tuple[Message, ...]
    images: Sequence[Any]
    chosen: Any
    rejected: Any = None
    tag: str = ""
    own_id: Any = None
    scores: tuple[float, float] | None = None
    kept: PreferencePair | None = None


Convert = Callable[[dict[str, Any]], Iterator[Draft | Dropped]]


@dataclass(frozen=True, slots=True)
class Importer:
    """`convert` turns a row into drafts, or into Dropped under a reason (the id is filled in); it raises Refused, or
    whatever a row of the wrong shape makes it raise, for a row that is none.

    `origin` and `licence` go into the spec of the set that is made. `text_only` says that prompts without images are
    wanted, `keyed` that a JSON object maps image ids to rows, and `own_ids` that drafts bring ids which could repeat.
    """

    name: str
    convert: Convert
    origin: str
    makes: Literal["pairs", "prompts"] = "pairs"
    text_only: bool = False
    keyed: bool = False
    own_ids: bool = False
    licence: str = "see origin"
    files: Callable[[Path], Sequence[DataFile | Dropped]] = find_files


def text_field(row: dict[str, Any], key: str) -> str:
    """A text that must be there (Refused `bad_row`)."""
    value = row.get(key)
    if not isinstance(value, str):
        raise Refused(
            "bad_row",
            f"expected a text under {key!r}, got {type(value).__name__}; check the data set",
        )
    return value


def list_field(row: dict[str, Any], key: str) -> list[Any]:
    """A list that must be there (Refused `bad_row`)."""
    value = row.get(key)
    if not isinstance(value, list):
        raise Refused(
            "bad_row",
            f"expected a list under {key!r}, got {type(value).__name__}; check the data set",
        )
    return value


def images_field(row: dict[str, Any], key: str) -> list[Any]:
    """One image, a list of them, or none (absent, null, empty)."""
    value = row.get(key)
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


def refuse_other_media(row: dict[str, Any]) -> None:
    """A row with videos or audios cannot be imported (Refused `video`, `audio`)."""
    for kind in ("video", "audio"):
        if row.get(kind) or row.get(f"{kind}s"):
            raise Refused(kind, f"expected images only, got a {kind}; drop the row")


def message(role: Literal["system", "user", "assistant"], text: str) -> Message:
    """A turn whose `<image>` markers become image parts. White space around a marker belongs to it."""
    pieces = text.split(MARKER)
    parts: list[Part] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append(Part("image"))
            piece = piece.lstrip()
        if number < len(pieces) - 1:
            piece = piece.rstrip()
        if piece:
            parts.append(Part("text", piece))
    return Message(role, tuple(parts))


def with_images(messages: Sequence[Message], num_images: int) -> tuple[Message, ...]:
    """Where a set leaves markers out, its images stand before the first user turn's text."""
    if any(part.kind == "image" for turn in messages for part in turn.parts):
        return tuple(messages)
    first = next(
        (number for number, turn in enumerate(messages) if turn.role == "user"), None
    )
    if first is None:
        return tuple(messages)
    opened = Message(
        "user", (*(Part("image") for _ in range(num_images)), *messages[first].parts)
    )
    return (*messages[:first], opened, *messages[first + 1 :])


def question(text: str, num_images: int) -> tuple[Message, ...]:
    """A single question about images, with or without markers."""
    return with_images([message("user", text)], num_images)
