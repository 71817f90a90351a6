"""MMPR: `meta.json` of `{name: {root, annotation}}`, each annotation jsonl of `{image?, question, chosen, rejected}`.

`image` is a path, a list of paths, or absent: text-only rows are imported as prompts without images. Paths of the meta
file are below its folder, with or without their first component (the archive's own name); those of images are
`root/image` below the image root in the same two ways. A jsonl file in place of `meta.json` is read without a root.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import UserError
from common.importers.base import Draft, Importer, images_field, question, text_field
from common.importers.readers import DataFile, find_files
from common.records import Dropped

ROOT = "meta_root"


def convert(row: dict[str, Any]) -> Iterator[Draft]:
    """One pair."""
    images = images_field(row, "image")
    asked = question(text_field(row, "question"), len(images))
    located = [
        _candidates(row.get(ROOT, ""), image) if isinstance(image, str) else image
        for image in images
    ]
    yield Draft(
        asked, located, row.get("chosen"), row.get("rejected"), own_id=row.get("id")
    )


def annotation_files(path: Path) -> Sequence[DataFile | Dropped]:
    """The annotation files that `meta.json` names; those outside its folder or missing are Dropped.

    Raises:
        UserError: `path` is neither, or the meta file is no JSON object.
    """
    meta_path = path / "meta.json" if path.is_dir() else path
    if meta_path.suffix == ".jsonl" or not meta_path.is_file():
        return find_files(path)
    try:
        sections = dict(json.loads(meta_path.read_bytes())).items()
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{meta_path}: expected a JSON object of sections, got: {error}; fetch it again"
        ) from error
    return [
        _section(meta_path.parent.resolve(), name, section)
        for name, section in sections
    ]


def _section(folder: Path, name: str, section: Any) -> DataFile | Dropped:
    try:
        root, annotation = section["root"], section["annotation"]
        if not isinstance(root, str):
            raise TypeError(f"root of type {type(root).__name__}")
        files = [
            (folder / candidate).resolve() for candidate in _candidates(annotation, "")
        ]
        outside = not all(file.is_relative_to(folder) for file in files)
        found = [] if outside else [file for file in files if file.is_file()]
    except (
        AttributeError,
        TypeError,
        KeyError,
        ValueError,
        OSError,
        RuntimeError,
    ) as error:
        return Dropped(
            name[:200],
            "bad_file",
            f"expected root and annotation in meta.json, got {error!r}"[:300],
        )
    if found:
        return DataFile(found[0], {ROOT: root})
    reason = "path_outside" if outside else "bad_file"
    return Dropped(
        name[:200],
        reason,
        f"{annotation[:200]}: expected a file below {folder}; fetch it",
    )


def _candidates(root: str, path: str) -> tuple[str, ...]:
    whole = f"{root.rstrip('/')}/{path}" if root and path else root or path
    shorter = PurePosixPath(*PurePosixPath(whole).parts[1:])
    return (
        (whole, str(shorter))
        if not PurePosixPath(whole).is_absolute() and shorter.name
        else (whole,)
    )


IMPORTER = Importer(
    "mmpr",
    convert,
    "OpenGVLab/MMPR",
    licence="mit",
    text_only=True,
    files=annotation_files,
)
