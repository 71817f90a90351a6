"""Replaces files and folders in such a way that a crash leaves the old one or the new one, never half of either."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: Path, text: str) -> None:
    """Write a text file aside, fsync it and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        # A rename may reach the disk before the content does.
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it replaces the one at `path` when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    yield partial
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    # A folder cannot be renamed over another one; `recover_directory` repairs a crash between the two renames.
    if path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def recover_directory(path: Path) -> None:
    """Put the old folder back after a crash between the two renames of `replace_directory`."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)
