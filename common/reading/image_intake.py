"""Brings the images of untrusted rows into the image store: bytes, encoded texts, or paths below one folder."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from cachetools import LRUCache

from common.data.below import SHOWN_CHARS, path_below
from common.data.images import ImageStore
from common.data.images import decode as check_decodes
from common.errors import Refused
from common.reading.encoded_images import decode, is_encoded
from common.records import ImageRef

MAX_FILE_BYTES = 256 * 1024 * 1024
REMEMBERED = 8192
"""How many stored images are remembered, so that an image of many rows is decoded once."""
MAX_FOLDERS = 20
"""How many folders of a path are tried to tell which prefix it has."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_WINDOWS_PATH = re.compile(r"[a-z]:[\\/]", re.IGNORECASE)
_PLACES = ("path", "url", "image", "image_url", "base64", "data")
"""Where an object has its image, beside `bytes`."""
_FILE_URL = "file://"


class ImageIntake:
    """Adds images to a store.

    Args:
        root: the folder that all paths must stay below, as `below.path_below` says.
        strip_prefix: cut off paths that begin with it, for example a folder on the author's disk.
        in_place: whether files stay where they are, and only what rows bring along as bytes goes to the store.
    """

    def __init__(
        self,
        root: Path,
        store: ImageStore,
        strip_prefix: str = "",
        in_place: bool = False,
    ) -> None:
        self.in_place = in_place
        self.root = root.absolute()
        self.store = store
        self.strip_prefix = strip_prefix
        # As rows spell them -> behind all links, of files that were there.
        self._folders: LRUCache[str, str] = LRUCache(REMEMBERED)
        # By path and by hash of the content.
        self._known: LRUCache[str, ImageRef] = LRUCache(REMEMBERED)

    def add(self, source: Any) -> ImageRef:
        """Add one image to the store.

        Args:
            source: encoded bytes; a text, which is a path, a `data:` URL or base64; `{bytes, path}` as `datasets`
                writes it, or `{url}`; or a tuple of paths, of which the first that exists is taken.

        Raises:
            Refused: `image_none`, `image_url`, `path_outside`, `image_missing`, the reasons of `images.decode`, or
                `bad_row` when `source` is none of these.
        """
        content = self.locate(source)
        if isinstance(content, bytes):
            return self._add_bytes(content, "embedded image")
        return self._add_file(content)

    def locate(self, source: Any) -> bytes | Path:
        """The bytes that `source` spells, or the file that it names, which is there (Refused as for `add`)."""
        if isinstance(source, Mapping):
            source = _content_of(source)
        if not source:
            raise Refused("image_none", "expected an image, got none; drop the row")
        if isinstance(source, bytes):
            return source
        if isinstance(source, str) and is_encoded(source):
            return decode(source)
        paths = source if isinstance(source, tuple) else (source,)
        if not all(isinstance(path, str) for path in paths):
            raise Refused(
                "bad_row",
                f"expected an image's path or bytes, got {type(source).__name__}; check the data set",
            )
        return self._first_file(paths)

    def _add_file(self, file: Path) -> ImageRef:
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
        if self.in_place:
            check_decodes(data, str(file))
            ref = ImageRef(sha256(data).hexdigest(), str(file))
        else:
            ref = self._add_bytes(data, str(file))
        self._known[str(file)] = ref
        return ref

    def _first_file(self, paths: tuple[str, ...]) -> Path:
        elsewhere: Refused | None = None
        for path in map(self._without_prefix, paths):
            neighbour = self._beside_others(path)
            if neighbour is not None:
                return neighbour
            try:
                file = path_below(self.root, path)
            except Refused as error:
                message = f"{error.message}; {self._hint(path)}"
                outside = Refused(error.reason, message)
                if not path.startswith("/") or ".." in path.split("/"):
                    raise outside from error
                # A path on the author's disk; the next candidate may be its bare name.
                elsewhere = elsewhere or outside
                continue
            # A known file needs no look at the disk.
            if str(file) in self._known or _is_file(file):
                folder, _, name = path.rpartition("/")
                if file.name == name:
                    self._folders[folder] = str(file.parent)
                return file
        if elsewhere is not None:
            raise elsewhere
        path = self._without_prefix(paths[0])
        raise Refused(
            "image_missing",
            f"{path[:SHOWN_CHARS]}: expected a file below {self.root}, got none; {self._hint(path)}",
        )

    def _beside_others(self, path: str) -> Path | None:
        """The file of a path whose folder is known, if it is a plain file: that takes one look at the disk."""
        folder, _, name = path.rpartition("/")
        real_folder = self._folders.get(folder)
        if real_folder is None or name in ("", ".", ".."):
            return None
        file = f"{real_folder}/{name}"
        try:
            is_plain = stat.S_ISREG(os.lstat(file).st_mode)
        except (OSError, ValueError):
            return None
        return Path(file) if is_plain else None

    def _without_prefix(self, path: str) -> str:
        """The path with `/` between its parts and without the given prefix (Refused `image_url` for an address)."""
        prefix = self.strip_prefix
        if _WINDOWS_PATH.match(path):
            path = "/" + path.replace("\\", "/")
            prefix = "/" + prefix.replace("\\", "/")
        elif path.startswith(f"{_FILE_URL}/") and self._holds_url(path):
            path = unquote(path.removeprefix(_FILE_URL))
        elif _URL.match(path):
            raise Refused(
                "image_url",
                f"{path[:SHOWN_CHARS]}: expected a file, got an address; fetch it yourself",
            )
        if self.strip_prefix and path.startswith(prefix):
            path = path[len(prefix) :].lstrip("/")
        return path

    def _holds_url(self, url: str) -> bool:
        """Whether a `file:` URL names a file below the root."""
        try:
            path_below(self.root, unquote(url.removeprefix(_FILE_URL)))
        except Refused:
            return False
        return True

    def _hint(self, path: str) -> str:
        """What to do about a path that leads to no file: the prefix whose end would make it one, if there is such."""
        parts = PurePosixPath(path).parts
        for start in range(max(1, len(parts) - MAX_FOLDERS), len(parts)):
            rest = "/".join(parts[start:])
            if ".." not in parts[start:] and _is_file(self.root / rest):
                prefix = path[: len(path) - len(rest)]
                return f"give --strip-prefix {_as_typed(prefix)}"
        folder = str(PurePosixPath(path).parent)
        if len(parts) > 1 and (path.startswith("/") or ".." in parts):
            return f"see --images, or cut off the author's folder with --strip-prefix {_as_typed(folder)}"
        return "see --images"

    def _add_bytes(self, data: bytes, name: str) -> ImageRef:
        digest = sha256(data).hexdigest()
        if digest not in self._known:
            self._known[digest] = self.store.add_bytes(data, name)
        return self._known[digest]


def _content_of(source: Mapping[str, Any]) -> Any:
    """What `{bytes, path}` holds, or another way to spell an image. In JSON, the bytes are base64."""
    content = source.get("bytes")
    if isinstance(content, str) and content:
        return decode(content)
    for key in _PLACES:
        content = content or source.get(key)
    # OpenAI's {url, detail}.
    if isinstance(content, Mapping):
        content = content.get("url") or content.get("path")
    return content


def _as_typed(prefix: str) -> str:
    """A prefix of a path as the user types it: Windows' own, without the slash that was put before it."""
    typed = prefix[:SHOWN_CHARS].removeprefix("/")
    return typed if _WINDOWS_PATH.match(typed) else prefix[:SHOWN_CHARS]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # for example a name that is too long
        return False
