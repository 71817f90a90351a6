"""The objects in COCO pictures, as CHAIR counts them: those of the segments, and those that people's captions name.

A folder holds `instances_*.json` and `captions_*.json` of the same pictures. They are read in bounded memory: the
official ones have hundreds of megabytes of outlines, which nobody needs here.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import UserError
from common.reading.byte_streams import open_stream
from common.reading.json_stream import JsonText
from reward.benchmarks.loading import find_file, folder_of
from reward.benchmarks.objects import ObjectWords

MAX_ELEMENT_BYTES = 64 * 1024 * 1024
_LAST_NUMBER = re.compile(r"(\d+)\D*$")


@dataclass(slots=True)
class CocoObjects:
    """What is in the pictures.

    Attributes:
        objects: image id -> names as of the synonyms file. A picture without annotations has no entry.
        file_names: image id -> name of its file.
    """

    objects: dict[int, set[str]] = field(default_factory=dict)
    file_names: dict[int, str] = field(default_factory=dict)


def read_objects(
    path: str,
    words: ObjectWords,
    key: str,
) -> CocoObjects:
    """The objects of all pictures in a folder of annotations.

    Args:
        words: names the categories and finds objects in captions.
        key: the setting that names the folder.

    Raises:
        UserError: there are no such files, one cannot be read, or a category is no object of `words`.
    """
    read = CocoObjects()
    for file in annotation_files(path, key):
        try:
            _add_file(file, words, read)
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{key}: expected COCO's annotations in {file.name}, got: {error!r}; fetch it again"
            ) from error
    return read


def annotation_files(path: str, key: str) -> list[Path]:
    """The files of segments and of captions in a folder (UserError when it has none of either)."""
    folder = folder_of(path, key)
    files: list[Path] = []
    for pattern in ("instances_*.json", "captions_*.json"):
        find_file(folder, [pattern], key)
        files += sorted(folder.glob(pattern))
    return files


def _add_file(
    file: Path,
    words: ObjectWords,
    read: CocoObjects,
) -> None:
    categories: dict[int, str] = {}
    # The names of categories stand behind the annotations.
    by_category: defaultdict[int, set[int]] = defaultdict(set)
    for key, element in _elements(file, ("images", "annotations", "categories")):
        if key == "images":
            read.file_names[element["id"]] = element["file_name"]
        elif key == "categories":
            categories[element["id"]] = element["name"]
        else:
            image_id = element["image_id"]
            objects = read.objects.setdefault(image_id, set())
            if "caption" in element:
                objects.update(words.named(element["caption"]))
            else:
                by_category[element["category_id"]].add(image_id)
    for category, image_ids in by_category.items():
        name = words.names.get(categories[category])
        if name is None:
            raise UserError(
                f"{file}: expected categories of the synonyms file, got {categories[category]!r}; add it there"
            )
        for image_id in image_ids:
            read.objects[image_id].add(name)


def _elements(
    file: Path,
    wanted: Collection[str],
) -> Iterator[tuple[str, Any]]:
    """(key, element) of the lists under these keys of one large JSON object."""
    with open_stream(file) as stream:
        text = JsonText(stream.text, MAX_ELEMENT_BYTES)
        for key in text.members():
            if text.peek() != b"[":
                text.value()
                continue
            for element in text.items():
                if key in wanted:
                    yield key, json.loads(element)


def image_id_of(
    facts: Mapping[str, Any],
    column: str = "image_id",
) -> int | None:
    """A picture's id: of the column, or the last number in the name of its file; None when there is neither.

    `COCO_val2014_000000310196.jpg` is 310196.
    """
    value = facts.get(column)
    if value is None:
        value = facts.get("image")
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        return None
    number = _LAST_NUMBER.search(PurePosixPath(value).stem)
    return int(number.group(1)) if number else None
