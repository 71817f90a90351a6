"""Pair sets made of another one, each of which takes away one thing that a loss might learn from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from common.chat import ChatEncoder
from common.data.datasets import read_pairs, write_pairs
from common.data.pair_writer import spec_of
from common.records import PreferencePair, Response

Edit: TypeAlias = Callable[[PreferencePair, ChatEncoder], PreferencePair | None]
"""A pair of the new set; None leaves it out."""


def without_end(pair: PreferencePair, encoder: ChatEncoder) -> PreferencePair:
    """The same texts without the token that ends them: no loss is about where an answer stops."""
    chosen, rejected = (
        Response(side.text, encoder.encode_response(side.text)[:-1])
        for side in (pair.chosen, pair.rejected)
    )
    return replace(pair, chosen=chosen, rejected=rejected)


def of_equal_length(
    pair: PreferencePair, encoder: ChatEncoder
) -> PreferencePair | None:
    """Only pairs whose sides have equally many tokens: no side can be told by its length."""
    lengths = {
        len(encoder.encode_response(side.text)) for side in (pair.chosen, pair.rejected)
    }
    return pair if len(lengths) == 1 else None


def write_edited(source: Path, edit: Edit, encoder: ChatEncoder, out: Path) -> None:
    """A set of what an edit makes of the pairs of `source`; its stats count the pairs that are left out."""
    edited = []
    pairs = read_pairs(source)
    for pair in pairs:
        changed = edit(pair, encoder)
        if changed is not None:
            edited.append(changed)
    spec = {**(spec_of(source) or {}), "edit": edit.__name__}
    dropped = {edit.__name__: len(pairs) - len(edited)}
    stats = {"num_pairs": len(edited), "dropped": dropped}
    write_pairs(out, edited, spec, stats)
