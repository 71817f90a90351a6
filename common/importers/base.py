"""What an importer is made of: a Draft per pair of a row, and helpers that read the fields of untrusted rows."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from common.errors import Refused
from common.reading.readers import DataFile, find_files
from common.records import Dropped, Message, Part, PreferencePair

MARKER = "<image>"
OTHER_MEDIA = ("video", "audio")
"""What rows may have beside images and is not read; a text has `<video>` in its place."""
_IMAGE_COLUMN = re.compile(
    r"(?:image|img|picture|photo)s?(?:_?(?:path|url|file|filename|name|byte|b64|base64|list))?s?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Draft:
    """A pair (or a prompt) as the row has it, unchecked: `build` reads the images and refuses what breaks a limit.

    Attributes:
        images: what `image_intake.ImageIntake.add` takes.
        chosen: the preferred answer, of any type yet; in a set of prompts the reference.
        tag: tells the drafts of one row apart.
        row_id: the row's id in its data set, which becomes a part of ours.
        exported: a pair that we exported ourselves, complete but for its images. Of the other fields, only `images`
            then counts.
        truth: what else the row says about the prompt; None: all columns that the importer does not read.
    """

    messages: tuple[Message, ...]
    images: Sequence[Any]
    chosen: Any
    rejected: Any = None
    tag: str = ""
    row_id: Any = None
    scores: tuple[float, float] | None = None
    exported: PreferencePair | None = None
    truth: Mapping[str, Any] | None = None


Convert = Callable[[dict[str, Any]], Iterator[Draft | Dropped]]


@dataclass(frozen=True, slots=True)
class Importer:
    """One published data set, or one exchange format.

    Attributes:
        convert: yields the drafts of a row, and Dropped for parts that are left out (their id is completed later). For
            a row it cannot use, it raises Refused, or whatever a row of the wrong shape makes it raise.
        origin, licence: go into the spec of the set that is made.
        columns: what `convert` reads; every other column of a row becomes the truth of its prompts.
        makes: what the records are.
        text_only: whether prompts without images are wanted.
        needs_answer: whether a prompt without a reference answer is refused.
        keyed: whether a JSON object maps image ids to rows, where others have a list.
        own_ids: whether drafts bring complete ids, which could repeat.
        files: finds the data files of a path.
    """

    name: str
    convert: Convert
    origin: str
    columns: Collection[str] = ()
    makes: Literal["pairs", "prompts"] = "pairs"
    text_only: bool = False
    needs_answer: bool = True
    keyed: bool = False
    own_ids: bool = False
    licence: str = "see origin"
    files: Callable[[Path], Sequence[DataFile | Dropped]] = find_files


def text_field(row: dict[str, Any], key: str) -> str:
    """The text under `key` (Refused `bad_row` when there is none)."""
    value = row.get(key)
    if not isinstance(value, str):
        raise Refused(
            "bad_row",
            f"expected a text under {key!r}, got {type(value).__name__}; check the data set",
        )
    return value


def list_field(row: dict[str, Any], key: str) -> list[Any]:
    """The list under `key` (Refused `bad_row` when there is none)."""
    value = row.get(key)
    if not isinstance(value, list):
        raise Refused(
            "bad_row",
            f"expected a list under {key!r}, got {type(value).__name__}; check the data set",
        )
    return value


def images_field(row: dict[str, Any], key: str) -> list[Any]:
    """The images under `key`: one, a list of them, or none (absent, null, empty)."""
    value = row.get(key)
    if value is None or value == "":
        return []
    if isinstance(value, list):
        return value
    return [value]


def refuse_other_media(row: dict[str, Any]) -> None:
    """Refuse a row with videos, audios or tools, which its texts rely on (Refused `video`, `audio`, `tools`)."""
    if row.get("tools"):
        raise Refused(
            "tools", "expected a conversation without tools, got some; drop the row"
        )
    for kind in OTHER_MEDIA:
        if row.get(kind) or row.get(f"{kind}s"):
            raise Refused(kind, f"expected images only, got a {kind}; drop the row")


def one_list(column: list[Any], parts: list[Any]) -> list[Any]:
    """The images of a row, which may stand in a column, in the parts of its messages, or in both.

    Raises:
        Refused: `bad_row` when both name files, and others.
    """
    images = [*column, *parts]
    are_comparable = all(isinstance(image, str) for image in images)
    if column and parts and are_comparable:
        names = sorted(map(_file_name, column))
        if names != sorted(map(_file_name, parts)):
            raise Refused(
                "bad_row",
                "expected the images of the messages in the column of images, got others there; drop the row",
            )
    return column or parts


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]


def refuse_other_columns(row: dict[str, Any]) -> None:
    """Refuse a row whose images stand in a column that its format does not have (Refused `image_column`)."""
    for key, value in row.items():
        if value and isinstance(key, str) and _IMAGE_COLUMN.fullmatch(key):
            raise Refused(
                "image_column",
                f"expected an image where this format has it, got none there but something under {key[:40]!r}; "
                "rename the column, or check NAME",
            )


def message(role: Literal["system", "user", "assistant"], text: str) -> Message:
    """A message whose `<image>` markers become image parts. White space around a marker goes with it."""
    pieces = text.split(MARKER)
    last = len(pieces) - 1
    parts: list[Part] = []
    for number, piece in enumerate(pieces):
        if number > 0:
            parts.append(Part("image"))
            piece = piece.lstrip()
        if number < last:
            piece = piece.rstrip()
        if piece:
            parts.append(Part("text", piece))
    return Message(role, tuple(parts))


def with_images(messages: Sequence[Message], num_images: int) -> tuple[Message, ...]:
    """The messages with `num_images` image parts before the first user turn's text, unless they have image parts."""
    first_user = None
    for number, turn in enumerate(messages):
        if any(part.kind == "image" for part in turn.parts):
            return tuple(messages)
        if first_user is None and turn.role == "user":
            first_user = number
    if first_user is None:
        return tuple(messages)
    images = [Part("image")] * num_images
    opened = Message("user", (*images, *messages[first_user].parts))
    return (*messages[:first_user], opened, *messages[first_user + 1 :])


def question(text: str, num_images: int) -> tuple[Message, ...]:
    """A single question about images, whether or not its text has markers for them."""
    return with_images([message("user", text)], num_images)


class _NoJson(ValueError):
    """A value that JSON has no type for."""


def other_columns(row: Mapping[Any, Any], columns: Collection[str]) -> dict[str, Any]:
    """The columns of a row that an importer does not read, as JSON types.

    Times become ISO texts, NaN becomes None. What JSON has no type for, such as the bytes of a second picture, is left
    out, and so are empty columns: a parquet file has every column in every row.
    """
    others: dict[str, Any] = {}
    for name, value in row.items():
        if name in columns or value is None:
            continue
        try:
            others[str(name)] = _as_json(value)
        except _NoJson:
            continue
    return others


def _as_json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | Decimal):
        number = float(value)
        return number if math.isfinite(number) else None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    raise _NoJson
