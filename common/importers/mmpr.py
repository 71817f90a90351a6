"""MMPR: a `meta.json` of `{name: {root, annotation}}`; annotation files hold `{image?, question, chosen, rejected}`.

`image` is a path, a list of paths, or absent; rows without one become pairs without images. Paths of the meta file are
below its folder, with or without their first component, which is the archive's name. Images lie at `root/image` below
the image root, in the same two ways. A .jsonl file in place of `meta.json` is read without a `root`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from common.data.below import path_below
from common.errors import Refused, UserError
from common.importers.base import Draft, Importer, images_field, question, text_field
from common.reading.encoded_images import is_encoded
from common.reading.json_rows import unambiguous
from common.reading.readers import DataFile, find_files
from common.records import Dropped

ROOT = "meta_root"
"""The field under which a row gets the `root` of its section."""


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """The pair of a row."""
    images = images_field(row, "image")
    text = text_field(row, "question")
    located = []
    for image in images:
        if isinstance(image, str) and not is_encoded(image):
            image = _candidates(row.get(ROOT, ""), image)
        located.append(image)
    yield Draft(
        question(text, len(images)),
        located,
        row.get("chosen"),
        row.get("rejected"),
        row_id=row.get("id"),
    )


def annotation_files(path: Path) -> Sequence[DataFile | Dropped]:
    """The annotation files that `meta.json` names; Dropped for those that are missing or outside its folder.

    Args:
        path: the meta file, its folder, or one annotation file.

    Raises:
        UserError: `path` is none of these, or the meta file is no JSON object.
    """
    meta_path = path / "meta.json" if path.is_dir() else path
    if meta_path.suffix == ".jsonl" or not meta_path.is_file():
        return find_files(path)
    try:
        text = meta_path.read_bytes()
        sections = dict(json.loads(text, object_pairs_hook=unambiguous))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{meta_path}: expected a JSON object of sections, got: {error}; fetch it again"
        ) from error
    folder = meta_path.parent.absolute()
    return [_section(folder, name, section) for name, section in sections.items()]


def _section(folder: Path, name: str, section: Any) -> DataFile | Dropped:
    """The annotation file of one section, or why it cannot be read."""
    drop_id = name[:200]
    try:
        root = section["root"]
        annotation = section["annotation"]
        if not isinstance(root, str):
            raise TypeError(f"root of type {type(root).__name__}")
        candidates = _candidates(annotation, "")
        files = [path_below(folder, candidate) for candidate in candidates]
        for file in files:
            if file.is_file():
                return DataFile(file, {ROOT: root})
    except Refused as error:
        reason = "path_outside" if error.reason == "path_outside" else "bad_file"
        return Dropped(drop_id, reason, error.message)
    # Whatever a section of another shape, or a path that no disk can hold, raises.
    except (
        AttributeError,
        TypeError,
        KeyError,
        ValueError,
        OSError,
        RuntimeError,
    ) as error:
        detail = f"expected root and annotation in meta.json, got {error!r}"
        return Dropped(drop_id, "bad_file", detail[:300])
    detail = f"{annotation[:200]}: expected a file below {folder}; fetch it"
    return Dropped(drop_id, "bad_file", detail)


def _candidates(root: str, path: str) -> tuple[str, ...]:
    """`root`/`path` as it is and, if it is relative, without its first component."""
    whole = f"{root.rstrip('/')}/{path}" if root and path else root or path
    pure = PurePosixPath(whole)
    shorter = PurePosixPath(*pure.parts[1:])
    if pure.is_absolute() or not shorter.name:
        return (whole,)
    return (whole, str(shorter))


COLUMNS = ("image", "question", "chosen", "rejected", ROOT)

IMPORTER = Importer(
    "mmpr",
    convert,
    "OpenGVLab/MMPR",
    licence="mit",
    text_only=True,
    files=annotation_files,
    columns=COLUMNS,
)
