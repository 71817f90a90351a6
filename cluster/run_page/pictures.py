"""The pictures of a run, by their hash: no path ever comes from the page."""

from __future__ import annotations

import io
import re
import threading
from collections import OrderedDict
from pathlib import Path

from common.data import images
from common.errors import Refused
from common.records import ImageRef

FOLDERS = ("pairs/images", "evaluation/images")
"""Where a run keeps pictures, below its directory."""
SIDE = 480
"""Pixels of the longer side of a picture on the page."""
SHA256 = re.compile("[0-9a-f]{64}")
CACHED = 256
"""Pictures that are kept as they were sent."""


class Pictures:
    """Encodes pictures for the page. Safe to use from several threads."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir.resolve()
        self._lock = threading.Lock()
        self._encoded: OrderedDict[str, bytes] = OrderedDict()

    def path(self, sha256: str) -> Path | None:
        """The file of this hash in the run's directory; None where there is none."""
        if not SHA256.fullmatch(sha256):
            return None
        for folder in FOLDERS:
            for path in (self._run_dir / folder / sha256[:2]).glob(f"{sha256}.*"):
                # A link out of the directory is not followed.
                if path.resolve().is_relative_to(self._run_dir):
                    return path
        return None

    def encoded(self, sha256: str) -> bytes:
        """A picture as WebP, at most `SIDE` pixels a side.

        Raises:
            Refused: it is not in the run's directory, or cannot be read.
        """
        with self._lock:
            known = self._encoded.get(sha256)
        if known is not None:
            return known
        path = self.path(sha256)
        if path is None:
            raise Refused(
                "image_missing",
                f"{sha256[:64]}: expected a picture of this run, got none; it comes with the next checkpoint",
            )
        encoded = _scaled(ImageRef(sha256, str(path)))
        with self._lock:
            self._encoded[sha256] = encoded
            if len(self._encoded) > CACHED:
                self._encoded.popitem(last=False)
        return encoded


def _scaled(ref: ImageRef) -> bytes:
    image = images.read(ref)
    buffer = io.BytesIO()
    # Small pictures are kept to the pixel.
    if max(image.size) <= SIDE:
        image.save(buffer, "webp", lossless=True)
    else:
        image.thumbnail((SIDE, SIDE))
        image.save(buffer, "webp", quality=85)
    return buffer.getvalue()
