"""Prompts of the user's own, one a row, in whatever columns people have them:

    image, images                                  paths, bytes, `{bytes, path}`, base64; or parts of the messages
    file_name                                      without these: the imagefolder convention of metadata.jsonl
    prompt, question, messages, conversations      a text, or the turns of a conversation
    answer, reference, chosen                      optional: a correct answer
    id                                             optional: becomes a part of the prompt's id

Every other column becomes the prompt's truth, for judges and suites. So does the id, by which a judge may look a row up
in files of its own, and an answer that is no text, such as the corners of a box. A conversation that ends with an
answer gives it as the reference, unless the row has one in a column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from common.data.datasets import PAIRS, PROMPTS
from common.errors import Refused, UserError
from common.importers.base import (
    Draft,
    Importer,
    images_field,
    other_columns,
    question,
    with_images,
)
from common.importers.conversations import (
    Turn,
    images_of_turns,
    messages_of,
    read_turns,
    split_last_answer,
)
from common.importers.trl import read_answer
from common.reading.encoded_images import is_encoded
from common.reading.readers import DataFile, find_files
from common.records import Dropped, Message

IMAGES = ("image", "images")
FILE_NAME = "file_name"
FOLDER = "folder_of_file"
"""The field under which a row gets the folder of its file, relative to the folder that image paths are below."""
QUESTIONS = ("prompt", "question", "messages", "conversations")
ANSWERS = ("answer", "reference", "chosen")
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
SEEN_FILES = 100
"""How many names tell that a folder holds nothing but pictures."""


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The prompt of a row.

    Raises:
        Refused: `prompt_none`, `image_none` when the row lacks these, with the columns that it has; `two_columns` when
            it has several of one kind; the reasons of `conversations.read_turns`.
    """
    asked = _one_of(row, QUESTIONS)
    if asked is None:
        raise Refused(
            "prompt_none",
            f"expected a question under one of {', '.join(QUESTIONS)}, got {_columns_of(row)}; rename its column",
        )
    read = {asked, *IMAGES, FOLDER}
    answer = _one_of(row, ANSWERS)
    reference = None
    if answer is not None:
        reference = _text_of(row[answer])
        # An answer that is no text stays a column, for a judge that checks it.
        if reference is not None:
            read.add(answer)
    images = _images_of(row, read)
    if isinstance(row[asked], str):
        messages = question(row[asked], len(images))
    else:
        turns = read_turns(row[asked])
        if turns and turns[-1].role == "assistant":
            turns, last_answer = split_last_answer(turns)
            reference = reference or last_answer
        messages = _messages(turns, images)
        images = images or images_of_turns(turns)
    if not images:
        names = ", ".join((*IMAGES, FILE_NAME))
        raise Refused(
            "image_none",
            f"expected a picture under one of {names}, got {_columns_of(row)}; rename its column",
        )
    truth = other_columns(row, read)
    yield Draft(messages, images, reference, row_id=row.get("id"), truth=truth)


def _one_of(row: dict[str, Any], names: Sequence[str]) -> str | None:
    """Which of these columns the row has, None for none (Refused `two_columns` for several)."""
    present = [name for name in names if row.get(name) not in (None, "", [])]
    if len(present) > 1:
        raise Refused(
            "two_columns",
            f"expected one of {', '.join(names)}, got {' and '.join(present)}; keep one, rename the others",
        )
    return present[0] if present else None


def _images_of(row: dict[str, Any], read: set[str]) -> list[Any]:
    """The images of the row's columns, none where its messages may bring them; adds the name of the column."""
    column = _one_of(row, IMAGES)
    if column is None and isinstance(row.get(FILE_NAME), str):
        column = FILE_NAME
    if column is None:
        return []
    read.add(column)
    return [_located(image, row.get(FOLDER)) for image in images_field(row, column)]


def _located(image: Any, folder: Any) -> Any:
    """A path is tried below the folder of its file first, then below the root."""
    if isinstance(image, dict) and not image.get("bytes"):
        image = image.get("path")
    if isinstance(image, str) and folder and not is_encoded(image):
        return (f"{folder}/{image}", image)
    return image


def _text_of(answer: Any) -> str | None:
    """An answer as text, None when it is none: a number is, the corners of a box are not."""
    if isinstance(answer, bool):
        return None
    if isinstance(answer, int | float):
        return str(answer)
    first = answer[0] if isinstance(answer, list) and answer else answer
    is_message = isinstance(first, dict) and "content" in first
    if isinstance(answer, str) or is_message:
        return read_answer(answer)
    return None


def _messages(turns: list[Turn], images: list[Any]) -> tuple[Message, ...]:
    return tuple(with_images(messages_of(turns), len(images)))


def _columns_of(row: dict[str, Any]) -> str:
    names = ", ".join(str(name) for name in row if name != FOLDER)
    return f"the columns {names[:120]}" if names else "no column"


def prompt_files(path: Path) -> Sequence[DataFile | Dropped]:
    """The data files of a path, of which every row is told its folder: image paths may be relative to it.

    Raises:
        UserError: there is no data file, or the folder is a set of ours.
    """
    for name in (PROMPTS, PAIRS):
        if (path / name).is_file():
            raise UserError(
                f"{path}: expected files of your own, got a set of ours ({name}); use it as it is"
            )
    _check_metadata(path)
    files: list[DataFile | Dropped] = []
    for file in find_files(path):
        if isinstance(file, DataFile) and path.is_dir():
            folder = file.path.parent.relative_to(path).as_posix()
            file = replace(file, extra={FOLDER: "" if folder == "." else folder})
        files.append(file)
    return files


def _check_metadata(path: Path) -> None:
    """Refuse (UserError) a folder of pictures without a file that says what is asked about them."""
    if not path.is_dir():
        return
    names = [name.name for name in islice(path.iterdir(), SEEN_FILES)]
    suffixes = {Path(name).suffix.lower() for name in names}
    if suffixes and suffixes <= PICTURES:
        raise UserError(
            f"{path}: expected metadata.jsonl beside the pictures, got pictures alone; write a line such as "
            f'{{"file_name": "{names[0]}", "prompt": "What is this?"}} for each'
        )


IMPORTER = Importer(
    "prompts",
    convert,
    "files of your own",
    makes="prompts",
    needs_answer=False,
    files=prompt_files,
)
