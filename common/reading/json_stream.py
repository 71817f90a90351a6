"""Cuts the elements out of a JSON text of any size, one at a time, without parsing them.

The text of an element is found by its brackets and strings alone. So whatever is wrong inside one (NaN with a strict
parser, a number that Python cannot hold, an unquoted word) is wrong with that element only, and its neighbours stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from common.reading.byte_streams import Readable

CHUNK_BYTES = 1 << 16

_SPACE = re.compile(rb"[ \t\r\n]*")
_STRUCTURE = re.compile(rb'["\[\]{}]')
_STRUCTURE_OR_COMMA = re.compile(rb'["\[\]{},]')
_QUOTE_OR_ESCAPE = re.compile(rb'["\\]')


class BrokenText(ValueError):
    """The JSON text breaks off, or its brackets do not fit: what follows cannot be told apart."""


class JsonText:
    """A position in a stream of JSON.

    Args:
        max_bytes: the longest element that is read.
    """

    def __init__(self, stream: Readable, max_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._buffer = b""
        self._at = 0

    def peek(self) -> bytes:
        """The next byte that is no white space; empty at the end."""
        while True:
            match = _SPACE.match(self._buffer, self._at)
            assert match is not None, "the pattern matches nothing at least"
            self._at = match.end()
            if self._at < len(self._buffer):
                return self._buffer[self._at : self._at + 1]
            if not self._fill():
                return b""

    def take(self, wanted: bytes) -> bytes:
        """Go behind the next byte, which is one of `wanted` (BrokenText when it is another)."""
        byte = self.peek()
        if not byte:
            raise BrokenText("it breaks off")
        if byte not in wanted:
            expected = " or ".join(wanted.decode())
            raise BrokenText(f"expected {expected}, found {byte!r}")
        self._at += 1
        return byte

    def items(self) -> Iterator[bytes]:
        """The texts of a list's elements. Afterwards the position is behind the list.

        A comma that is missing behind an object or a list costs no element.
        """
        self.take(b"[")
        while self.peek() != b"]":
            text = self.value(ends_with_bracket=True)
            yield text
            no_comma_behind = self.peek() not in (b"", b",", b"]", b"}")
            if text and no_comma_behind:
                continue
            if self.take(b",]") == b"]":
                return
        self.take(b"]")

    def members(self) -> Iterator[str]:
        """The keys of an object; the caller takes each one's value before it asks for the next key."""
        self.take(b"{")
        while self.peek() != b"}":
            if self.peek() != b'"':
                raise BrokenText("expected a key in quotes")
            yield self._key()
            if self.take(b",}") == b"}":
                return
        self.take(b"}")

    def value(self, ends_with_bracket: bool = False) -> bytes:
        """The text of one value: up to the comma or bracket behind it, or to the end of an object or a list."""
        self._forget()
        start = end = self._at
        depth = 0
        while True:
            pattern = _STRUCTURE if depth else _STRUCTURE_OR_COMMA
            match = pattern.search(self._buffer, end)
            if match is None:
                end = self._past_buffer(start)
                continue
            end = match.end()
            byte = match.group()
            if byte == b'"':
                end = self._past_string(start, end)
            elif byte in b"[{":
                depth += 1
            elif depth == 0:
                self._at = match.start()
                return self._buffer[start : self._at]
            elif byte in b"]}":
                depth -= 1
                if depth == 0 and ends_with_bracket:
                    self._at = end
                    return self._buffer[start:end]

    def _key(self) -> str:
        """The key at the position, whose colon is taken as well."""
        self._forget()
        start = self._at
        self._at = self._past_string(start, start + 1)
        text = self._buffer[start : self._at]
        self.take(b":")
        try:
            return str(json.loads(text))
        except ValueError as error:
            raise BrokenText(f"a key that is no text: {error}") from error

    def _past_string(self, start: int, end: int) -> int:
        """The place in the buffer behind a string whose quote stands before `end`, in an element from `start` on."""
        while True:
            match = _QUOTE_OR_ESCAPE.search(self._buffer, end)
            if match is None:
                # Behind an escape, `end` may lie beyond what has been read.
                end = max(end, self._past_buffer(start))
            elif match.group() == b'"':
                return match.end()
            else:
                end = match.end() + 1

    def _past_buffer(self, start: int) -> int:
        """Read on; the place where the new bytes begin (BrokenText at the end, or for a too long element)."""
        end = len(self._buffer)
        if end - start > self._max_bytes:
            raise BrokenText(f"an element of more than {self._max_bytes:,} bytes")
        if not self._fill():
            raise BrokenText("it breaks off")
        return end

    def _fill(self) -> bool:
        """Append the next bytes of the stream to the buffer, as many as it holds: a long element is copied rarely."""
        chunk = self._stream.read(max(CHUNK_BYTES, len(self._buffer)))
        self._buffer += chunk
        return bool(chunk)

    def _forget(self) -> None:
        """Drop what has been read from the buffer, once it is worth a copy of the rest."""
        if self._at > CHUNK_BYTES // 2:
            self._buffer = self._buffer[self._at :]
            self._at = 0
