"""Telling a few given answers apart by their first tokens."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import UserError


def decisive_tokens(
    options: Sequence[str],
    token_ids: Sequence[Sequence[int]],
) -> list[tuple[int, ...]]:
    """Every option's tokens up to the first that no other option has at this place.

    With Llama's tokenizer "1" is "▁" and "1": what tells grades apart is the second token. The probabilities of these
    beginnings are those of disjoint events.

    Args:
        options: the answers as texts, for the message.
        token_ids: the same as tokens, such as `encode_response` gives.

    Raises:
        UserError: the tokens of one option are the beginning of another's.
    """
    beginnings: list[tuple[int, ...]] = []
    for index, tokens in enumerate(token_ids):
        others = [*token_ids[:index], *token_ids[index + 1 :]]
        longest = max((_num_shared(tokens, other) for other in others), default=0)
        if longest == len(tokens):
            raise UserError(
                f"{options[index]!r}: expected answers that the judge's tokenizer tells apart, got the same tokens as "
                f"of another of {list(options)}; choose other words, or set reading = text"
            )
        beginnings.append(tuple(tokens[: longest + 1]))
    return beginnings


def _num_shared(
    one: Sequence[int],
    other: Sequence[int],
) -> int:
    """The number of tokens at the beginning that both have."""
    count = 0
    for ours, theirs in zip(one, other, strict=False):
        if ours != theirs:
            break
        count += 1
    return count
