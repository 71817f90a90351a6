"""Images that a row spells out as text: base64, and `data:` URLs."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from common.data.below import MAX_PATH_CHARS
from common.data.file_kinds import kind_of
from common.errors import Refused

MIN_BASE64_CHARS = 64
"""Shorter texts are paths: the smallest picture takes more."""

_DATA_URL = "data:"
# Both alphabets, with line breaks.
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}")


def is_encoded(text: str) -> bool:
    """Whether the text is a `data:` URL or the base64 of a file; any other text is a path."""
    if text[: len(_DATA_URL)].lower() == _DATA_URL:
        return True
    if len(text) < MIN_BASE64_CHARS or not _BASE64.fullmatch(text.strip()):
        return False
    if len(text) > MAX_PATH_CHARS:
        return True
    # A JPEG's base64 begins like an absolute path, /9j/: only the decoded bytes tell.
    try:
        data = decode_base64(text)
    except Refused:
        return False
    return kind_of(data).is_readable_image


def decode(text: str) -> bytes:
    """The bytes that `is_encoded` text spells (Refused `bad_row` when it is not what it says)."""
    if text[: len(_DATA_URL)].lower() != _DATA_URL:
        return decode_base64(text)
    header, comma, body = text.partition(",")
    if not comma:
        raise Refused(
            "bad_row",
            f"expected data:TYPE;base64,… as an image, got {header[:40]!r}; repair the row",
        )
    if header.lower().endswith(";base64"):
        return decode_base64(body)
    return unquote_to_bytes(body)


def decode_base64(text: str) -> bytes:
    """The bytes of a base64 text, of either alphabet, with or without line breaks and padding.

    Raises:
        Refused: `bad_row` when it is no base64.
    """
    packed = "".join(text.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    padding = "=" * (-len(packed) % 4)
    try:
        return base64.b64decode(packed + padding, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(
            "bad_row",
            f"expected an image as base64, got another text ({error}); repair the row",
        ) from error
