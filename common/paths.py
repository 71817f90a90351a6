"""Replaces files and folders in such a way that a crash leaves the old one or the new one, never half of either."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def expand_home(text: str) -> str:
    """A path as a person means it, with `~` and `~name` for home folders.

    Raises:
        ValueError: it is empty, holds a null character, or names no home folder.
    """
    if not text.strip():
        raise ValueError("expected a path, such as runs/mine or ~/runs/mine")
    if "\0" in text:
        raise ValueError("expected a path without null characters")
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)  # noqa: PTH111 - pathlib raises where there is no such home
    if expanded.startswith("~"):
        name = text.partition("/")[0]
        raise ValueError(f"expected a home folder {name} or, for a name, ./{text}")
    return expanded


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make errors of the system about this output name it; a full disk alone says no path.

    Libraries that report a failed write in words of their own are understood, too.
    """
    try:
        yield
    except OSError as error:
        # The user knows the output, not the name of the file beside it that takes its place.
        beside = str(path.with_name(f".{path.name}."))
        is_nameless = error.filename is None or str(error.filename).startswith(beside)
        if error.errno is not None and is_nameless:
            error.filename, error.filename2 = str(path), None
        raise
    except Exception as error:
        number = _errno_in(str(error))
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _errno_in(message: str) -> int | None:
    """The system's error that safetensors tells of in Rust's words, None where it is about something else."""
    numbered = re.search(r"\(os error (\d+)\)", message)
    return int(numbered.group(1)) if numbered else None


def check_output_file(path: Path) -> None:
    """Find out before hours of work whether this file could be written; its folder is made if it is not there.

    Raises:
        OSError: what writing it would raise.
    """
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not an empty file, which fits on a full disk.
        trial = path.with_name(f".{path.name}.{os.getpid()}.trial")
        replace_file(trial, "x" * 4096)
        trial.unlink()


def replace_file(path: Path, text: str) -> None:
    """Write a text file aside, fsync it and rename it into place."""
    partial = _partial(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                # A rename may reach the disk before the content does.
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            # What does not fit must not take the last room.
            with suppress(OSError):
                partial.unlink()
            raise


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it replaces the one at `path` when the block ends without an exception."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_directory(path)
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


def partial_directory(path: Path) -> Path:
    """Where `replace_directory` lets a folder be filled."""
    return path.with_name(f".{path.name}.partial")


def recover_directory(path: Path) -> None:
    """Put the old folder back after a crash between the two renames of `replace_directory`."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)
