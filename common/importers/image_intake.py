"""Brings the images of untrusted rows into the image store: embedded bytes, or paths that stay below one folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from cachetools import LRUCache

from common.data.images import ImageStore
from common.errors import Refused
from common.records import ImageRef

MAX_FILE_BYTES = 256 * 1024 * 1024
REMEMBERED = 8192
"""How many stored images are remembered, so that an image of many rows is decoded once."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)


class ImageIntake:
    """Adds images to a store.

    Args:
        root: the folder that all paths are relative to and must stay in.
        strip_prefix: cut off paths that begin with it, for example a folder on the author's disk.
    """

    def __init__(self, root: Path, store: ImageStore, strip_prefix: str = "") -> None:
        self.root = root.resolve()
        self.store = store
        self.strip_prefix = strip_prefix
        # By path and by hash of the content.
        self._known: LRUCache[str, ImageRef] = LRUCache(REMEMBERED)

    def add(self, source: Any) -> ImageRef:
        """Add one image to the store.

        Args:
            source: encoded bytes, a path, `{bytes, path}` as `datasets` writes it, or a tuple of paths, of which the
                first that exists is taken.

        Raises:
            Refused: `image_none`, `image_url`, `path_outside`, `image_missing`, the reasons of `images.decode`, or
                `bad_row` when `source` is none of these.
        """
        if isinstance(source, Mapping):
            source = source.get("bytes") or source.get("path")
        if not source:
            raise Refused("image_none", "expected an image, got none; drop the row")
        if isinstance(source, bytes):
            return self._add_bytes(source, "embedded image")
        paths = source if isinstance(source, tuple) else (source,)
        if not all(isinstance(path, str) for path in paths):
            raise Refused(
                "bad_row",
                f"expected an image's path or bytes, got {type(source).__name__}; check the data set",
            )
        return self._add_file(paths)

    def _add_file(self, paths: tuple[str, ...]) -> ImageRef:
        """Add the first of these files that exists."""
        file = self._first_file(paths)
        if str(file) in self._known:
            return self._known[str(file)]
        if file.stat().st_size > MAX_FILE_BYTES:
            raise Refused(
                "image_huge",
                f"{file}: expected at most {MAX_FILE_BYTES:,} bytes, got more; scale it down",
            )
        try:
            data = file.read_bytes()
        except OSError as error:
            raise Refused(
                "image_missing",
                f"{file}: expected a readable file, got {error.strerror}",
            ) from error
        ref = self._add_bytes(data, str(file))
        self._known[str(file)] = ref
        return ref

    def _first_file(self, paths: tuple[str, ...]) -> Path:
        for path in paths:
            file = self._below_root(path)
            # A known file needs no look at the disk.
            if str(file) in self._known or _is_file(file):
                return file
        raise Refused(
            "image_missing",
            f"{paths[0][:200]}: expected a file below {self.root}, got none; see --images",
        )

    def _below_root(self, path: str) -> Path:
        """The absolute path, after links; refused if it does not stay below the root."""
        if _URL.match(path):
            raise Refused(
                "image_url",
                f"{path[:200]}: expected a file, got an address; fetch it yourself",
            )
        if self.strip_prefix and path.startswith(self.strip_prefix):
            path = path[len(self.strip_prefix) :].lstrip("/")
        pure = PurePosixPath(path)
        try:
            file = (self.root / pure).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise Refused(
                "image_missing",
                f"{path[:200]!r}: expected a path below --images, got {error}",
            ) from error
        climbs = pure.is_absolute() or ".." in pure.parts
        if climbs or not file.is_relative_to(self.root):
            raise Refused(
                "path_outside",
                f"{path[:200]}: expected a path below {self.root}, got one that leaves it",
            )
        return file

    def _add_bytes(self, data: bytes, name: str) -> ImageRef:
        digest = sha256(data).hexdigest()
        if digest not in self._known:
            self._known[digest] = self.store.add_bytes(data, name)
        return self._known[digest]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # for example a name that is too long
        return False
