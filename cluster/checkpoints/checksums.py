"""Checksums of a folder's files, so that a damaged one is found before anything is made of it."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.paths import replace_file

CHECKSUMS = "checksums.json"
NUM_THREADS = 8
"""Hashing leaves Python's lock: a checkpoint of tens of gigabytes is read as fast as the disk gives it."""


def write_checksums(folder: Path) -> None:
    """Write `checksums.json` beside the files that it describes: path -> SHA-256, subfolders included."""
    replace_file(folder / CHECKSUMS, json.dumps(_checksums(folder), indent=1) + "\n")


def damage(folder: Path) -> str | None:
    """What is wrong with the files that `write_checksums` saw, in a few words; None when all are as they were."""
    path = folder / CHECKSUMS
    if not path.exists():
        return f"no {CHECKSUMS}"
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        present = _checksums(folder)
    except (OSError, ValueError) as error:
        return f"{path.name}: {error}"
    for name, checksum in written.items():
        if name not in present:
            return f"no {name}"
        if present[name] != checksum:
            return f"another {name} than was written (its checksum differs)"
    return None


def _checksums(folder: Path) -> dict[str, str]:
    paths = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != CHECKSUMS:
            paths.append(path)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        checksums = list(threads.map(_checksum, paths))
    names = [path.relative_to(folder).as_posix() for path in paths]
    return dict(zip(names, checksums, strict=True))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
