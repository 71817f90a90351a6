"""Text is text: special tokens that a person or a model has written out never become control tokens.

A tokenizer takes every "</s>" in a text for the token of that name. Texts without such words, nearly all, go to it as
they are. In others the words are masked before the chat template is rendered, so that the template's own tokens can be
told from them; then the text between the template's tokens is encoded as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from common.errors import Refused

# Noncharacters of Unicode around an index: no text holds them, and no template changes them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MASK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_NEUTRAL = "x"


class PlainText:
    """Encodes texts of a tokenizer so that written-out special tokens stay text.

    Args:
        media_tokens: are left alone; whoever writes one is refused elsewhere.
        control_tokens: tokens beside the tokenizer's special ones that must not be written, such as a turn's end.
    """

    def __init__(
        self,
        tokenizer: Any,
        media_tokens: Iterable[str],
        control_tokens: Iterable[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        special = {*tokenizer.all_special_tokens, *control_tokens}
        added = set()
        for token in tokenizer.added_tokens_decoder.values():
            added.add(token.content)
            if token.special:
                special.add(token.content)
        special -= {"", *media_tokens}
        self._special = _longest_first(special)
        self._added = _pattern(_longest_first({*added, *special, *media_tokens}))
        self._written = _pattern(self._special)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        ids = self._tokenizer.convert_tokens_to_ids(list(self._special))
        return frozenset(ids)

    def is_plain(self, text: str) -> bool:
        """Whether the text holds no special token."""
        return self._written.search(text) is None

    def mask(self, text: str) -> str:
        """The text with a stand-in for every special token; a template's own tokens stay the only ones."""

        def stand_in(match: re.Match[str]) -> str:
            return f"{_OPEN}{self._special.index(match.group())}{_CLOSE}"

        return self._written.sub(stand_in, text)

    def num_masks(self, text: str) -> int:
        """How many stand-ins the text holds."""
        return len(_MASK.findall(text))

    def unmask(self, text: str) -> str:
        """The text of `mask` as it was."""

        def original(match: re.Match[str]) -> str:
            index = int(match.group(1))
            return self._special[index] if index < len(self._special) else match.group()

        return _MASK.sub(original, text)

    def neutral(self, text: str) -> str:
        """The text of `mask` with a letter for every stand-in: what the processor is given to measure images with."""
        return _MASK.sub(_NEUTRAL, text)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text that is plain to the end.

        Raises:
            Refused: `special_token` when this tokenizer makes a control token of it all the same.
        """
        if self.is_plain(text):
            return self._tokenizer.encode(text, add_special_tokens=False)  # type: ignore[no-any-return]
        token_ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )
        if not self._special_ids.isdisjoint(token_ids):
            raise self._refusal(text)
        return token_ids

    def rendered_ids(self, masked: str, prefix: list[int]) -> list[int]:
        """Token ids of a rendered conversation whose texts were masked; only the template's tokens are control tokens.

        Args:
            prefix: what the tokenizer puts in front by itself.

        Raises:
            Refused: `special_token` when this tokenizer cannot be split like this without changing other tokens.
        """
        # The same parts without the written tokens must give what the tokenizer makes of the whole.
        neutral = self.neutral(masked)
        whole = self._tokenizer.encode(neutral, add_special_tokens=False)
        if self._in_parts(neutral) != whole:
            raise self._refusal(self.unmask(masked))
        return [*prefix, *self._in_parts(masked)]

    def _in_parts(self, masked: str) -> list[int]:
        token_ids: list[int] = []
        start = 0
        for match in self._added.finditer(masked):
            token_ids += self._text_ids(masked[start : match.start()])
            token_ids.append(self._tokenizer.convert_tokens_to_ids(match.group()))
            start = match.end()
        return token_ids + self._text_ids(masked[start:])

    def _text_ids(self, masked: str) -> list[int]:
        return self.ids(self.unmask(masked)) if masked else []

    def _refusal(self, text: str) -> Refused:
        written = sorted(set(self._written.findall(text)))
        return Refused(
            "special_token",
            f"expected text without special tokens, got {', '.join(written)}, which this tokenizer cannot take as "
            "plain text; take it out",
        )


def _longest_first(tokens: Iterable[str]) -> list[str]:
    return sorted(tokens, key=lambda token: (-len(token), token))


def _pattern(tokens: list[str]) -> re.Pattern[str]:
    """Finds any of the tokens; nothing when there are none."""
    if not tokens:
        return re.compile(r"(?!)")
    return re.compile("|".join(map(re.escape, tokens)))
