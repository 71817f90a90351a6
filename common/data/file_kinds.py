"""Says what a file is by its first bytes, for messages about files that are not what their name promises."""

from __future__ import annotations

import json
import re
from typing import NamedTuple


class FileKind(NamedTuple):
    """What a file is, and what a person can do about it."""

    name: str
    remedy: str
    is_readable_image: bool = False
    is_video: bool = False


_CONVERT = "convert it to PNG or JPEG"
_FETCH = "fetch it again"
_UNPACK = "unpack it first"
_DROP = "drop it"
_NO_IMAGE = "give the image instead"

EMPTY = FileKind("an empty file", _FETCH)
LFS_POINTER = FileKind("a git-LFS pointer in place of the file", "run git lfs pull")
HTML = FileKind("an HTML page, as a failed download leaves it", "fetch the file itself")
ARROW = FileKind("an Arrow file", _NO_IMAGE)
_SVG = FileKind("an SVG drawing", _CONVERT)
_XML = FileKind("an XML text, as a refused download leaves it", _FETCH)
_JSON = FileKind("a JSON text", _NO_IMAGE)
_TEXT = FileKind("a plain text", _NO_IMAGE)
_UNKNOWN = FileKind("bytes of no known format", "re-export it")

# At offset 0.
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": FileKind("a PNG", _FETCH, True),
    b"\xff\xd8\xff": FileKind("a JPEG", _FETCH, True),
    b"GIF87a": FileKind("a GIF", _FETCH, True),
    b"GIF89a": FileKind("a GIF", _FETCH, True),
    b"II*\0": FileKind("a TIFF", _FETCH, True),
    b"MM\0*": FileKind("a TIFF", _FETCH, True),
    b"\xff\x0a": FileKind("a JPEG XL image", _CONVERT),
    b"\0\0\0\x0cJXL ": FileKind("a JPEG XL image", _CONVERT),
    b"\0\0\0\x0cjP  ": FileKind("a JPEG 2000 image", _CONVERT),
    b"\xff\x4f\xff\x51": FileKind("a JPEG 2000 image", _CONVERT),
    b"\0\0\x01\0": FileKind("an ICO icon", _CONVERT),
    b"8BPS": FileKind("a Photoshop file", _CONVERT),
    b"DDS ": FileKind("a DDS texture", _CONVERT),
    b"%PDF": FileKind("a PDF", _CONVERT),
    b"%!PS": FileKind("a PostScript drawing", _CONVERT),
    b"\x1aE\xdf\xa3": FileKind("a Matroska or WebM video", _DROP, is_video=True),
    b"PK\x03\x04": FileKind("a ZIP archive", _UNPACK),
    b"\x1f\x8b": FileKind("a gzip file", _UNPACK),
    b"BZh": FileKind("a bzip2 file", _UNPACK),
    b"\xfd7zXZ\0": FileKind("an xz file", _UNPACK),
    b"\x28\xb5\x2f\xfd": FileKind("a Zstandard file", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": FileKind("a 7z archive", _UNPACK),
    b"Rar!": FileKind("a RAR archive", _UNPACK),
    b"\x93NUMPY": FileKind("a NumPy array", _CONVERT),
    b"\x89HDF": FileKind("an HDF5 file", _UNPACK),
    b"PAR1": FileKind("a parquet file", _NO_IMAGE),
    b"ARROW1": ARROW,
}
AVIF = FileKind("an AVIF image", f"{_FETCH}, or {_CONVERT}", True)
"""Whether it is read depends on how Pillow was built."""
# The brand of an ISO media file, behind `ftyp`.
_BRANDS = {
    b"avif": AVIF,
    b"avis": AVIF,
    b"heic": FileKind("a HEIC image", _CONVERT),
    b"heix": FileKind("a HEIC image", _CONVERT),
    b"hevc": FileKind("a HEIC image", _CONVERT),
    b"mif1": FileKind("a HEIF image", _CONVERT),
    b"msf1": FileKind("a HEIF image", _CONVERT),
}
_VIDEO = FileKind("an MP4 or QuickTime video", _DROP, is_video=True)
_WEBP = FileKind("a WebP", _FETCH, True)
_BMP = FileKind("a BMP", _FETCH, True)
_PICKLE = FileKind("a Python pickle, which is never opened", _CONVERT)
_RIFF = FileKind("an AVI or WAV file", _DROP)
_TAR = FileKind("a tar archive", _UNPACK)

_LFS_START = b"version https://git-lfs.github.com/"
_XML_PROLOGUE = re.compile(rb"(?:<\?xml.*?\?>|<!--.*?-->|<!DOCTYPE svg.*?>|\s)*", re.S)
_HEAD = 4096
"""How many bytes are looked at."""


def is_binary(data: bytes) -> bool:
    """Whether a file begins as no text does."""
    return kind_of(data) in _SIGNATURES.values()


def kind_of(data: bytes) -> FileKind:
    """What the bytes of a file, or its first ones, are. Their content is never part of the answer."""
    if not data:
        return EMPTY
    head = data[:_HEAD]
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], _VIDEO)
    if head.startswith(b"RIFF"):
        return _WEBP if head[8:12] == b"WEBP" else _RIFF
    # Two bytes say little: those of a BMP are followed by its size and four reserved zeros.
    if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0":
        return _BMP
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return _PICKLE
    if head[257:262] == b"ustar":
        return _TAR
    return _text_kind(head, is_whole=len(data) <= _HEAD)


def _text_kind(head: bytes, is_whole: bool) -> FileKind:
    """What a text is, or `_UNKNOWN` for bytes that are no text."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return FileKind("a file of white space", _FETCH)
    if text.startswith(_LFS_START):
        return LFS_POINTER
    prologue = _XML_PROLOGUE.match(text)
    markup = text[prologue.end() if prologue else 0 :].lower()
    if markup.startswith((b"<svg", b"<svg:")):
        return _SVG
    if markup.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return HTML
    if text.startswith(b"<?xml"):
        return _XML
    if not _is_text(text):
        return _UNKNOWN
    if markup.startswith(b"<") and b"</" in markup:
        return HTML
    # The beginning of a longer file cannot be parsed.
    if text[:1] in (b"{", b"[") and (not is_whole or _is_json(text)):
        return _JSON
    return _TEXT


def _is_text(data: bytes) -> bool:
    """Whether nearly all of it is UTF-8: a text may have a stray byte, or end within a character."""
    in_utf8 = data.decode("utf-8", "ignore").encode()
    return b"\0" not in data and len(in_utf8) >= 0.9 * len(data)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
