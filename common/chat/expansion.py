"""An image in a prompt's tokens: one placeholder, and what a processor makes of it.

<img> placeholder             unexpanded, as the chat template writes it
<img> i i i BREAK i i i END   expanded: image tokens, and marks between them in some families
"""

from __future__ import annotations

from collections.abc import Sequence

Tokens = Sequence[int]


def expanded_like(
    measured: Tokens, parts: Sequence[Tokens], others: Sequence[Tokens]
) -> list[int] | None:
    """The tokens of `measured` with other text around its images.

    Args:
        measured: an expanded prompt.
        parts: its text before, between and behind the images.
        others: the text that takes the place of `parts`, as many pieces.

    Returns:
        None where `measured` does not have these parts in this order.
    """
    if len(parts) != len(others):
        return None
    images = _images(measured, parts)
    if images is None:
        return None
    tokens = list(others[0])
    for image, text in zip(images, others[1:], strict=True):
        tokens += image
        tokens += text
    return tokens


def _images(measured: Tokens, parts: Sequence[Tokens]) -> list[Tokens] | None:
    """What stands between the parts, one run of tokens per image."""
    start = _behind(measured, parts[0], 0, 0)
    if start is None:
        return None
    last = len(parts) - 1
    images = []
    for number, part in enumerate(parts[1:], start=1):
        # The last part ends the prompt; any other is looked for behind at least one token of the image.
        first = len(measured) - len(part) if number == last else start + 1
        end = _behind(measured, part, first, len(measured) - len(part))
        if end is None:
            return None
        images.append(measured[start : end - len(part)])
        start = end
    return images if start == len(measured) else None


def _behind(measured: Tokens, part: Tokens, first: int, last: int) -> int | None:
    """Where the first copy of a part ends that begins between these places."""
    for begin in range(first, last + 1):
        if list(measured[begin : begin + len(part)]) == list(part):
            return begin + len(part)
    return None
