"""Opens data files as streams of UTF-8: compressed ones are unpacked, UTF-16 and UTF-32 are converted."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import pyarrow as pa

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
UNPACKING_ERRORS = (EOFError, zlib.error, lzma.LZMAError)
"""What reading a compressed file raises beside OSError when it is damaged or breaks off."""

# UTF-32's mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ZEROS = {
    b"\1\0\0\0": "utf-32-le",
    b"\0\0\0\1": "utf-32-be",
    b"\1\0\1\0": "utf-16-le",
    b"\0\1\0\1": "utf-16-be",
}

_ZSTD_FRAME = b"\x28\xb5\x2f\xfd"
# Behind the first byte of a frame that is skipped: pzstd begins with one.
_ZSTD_SKIPPED = b"\x2a\x4d\x18"


class Readable(Protocol):
    """What is read of a stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes or characters; nothing at the end."""

    def readline(self, size: int, /) -> bytes:
        """The next line with its line feed, at most `size` bytes or characters of it; nothing at the end."""


class Stream(NamedTuple):
    """A data file as UTF-8 without byte order mark, and the file on disk, whose `tell` says how far it is read."""

    text: Readable
    file: BinaryIO


@contextmanager
def open_stream(path: Path) -> Iterator[Stream]:
    """Open a data file; its first bytes, not its name, say how it is packed and encoded."""
    with path.open("rb") as file:
        unpacked = io.BufferedReader(_unpacked(file))
        encoding = _encoding(unpacked.peek(4)[:4])
        if encoding is None:
            yield Stream(unpacked, file)
        elif encoding == "utf-8":
            unpacked.read(len(codecs.BOM_UTF8))
            yield Stream(unpacked, file)
        else:
            text = io.TextIOWrapper(unpacked, encoding, newline="\n")
            yield Stream(_Recoded(text), file)


def read_head(path: Path, size: int) -> bytes:
    """The first bytes of a data file as UTF-8; empty for one that cannot be unpacked."""
    try:
        with open_stream(path) as stream:
            return stream.text.read(size)
    except (OSError, ValueError, *UNPACKING_ERRORS):
        return b""


def _unpacked(file: BinaryIO) -> Any:
    """What reads the content of a file, packed or not; at least as much of a raw stream as `io` builds on."""
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if start.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if start.startswith(b"\xfd7zXZ"):
        return lzma.LZMAFile(file)
    if start.startswith(_ZSTD_FRAME) or start[1:4] == _ZSTD_SKIPPED:
        return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")
    return file


def _encoding(start: bytes) -> str | None:
    """The encoding that the first four bytes of a JSON text show; None for UTF-8 without a mark."""
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    # JSON begins with an ASCII character: zeros beside it tell the width and the order of the bytes.
    return _ZEROS.get(bytes(min(byte, 1) for byte in start))


class _Recoded:
    """A decoded text as UTF-8 bytes. Lone surrogates stay, so that they cost their row and not the file."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text

    def read(self, size: int, /) -> bytes:
        return self._text.read(size).encode("utf-8", "surrogatepass")

    def readline(self, size: int, /) -> bytes:
        return self._text.readline(size).encode("utf-8", "surrogatepass")
