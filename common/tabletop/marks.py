"""A caption with its errors marked, for the samples page: what is made up, and what is wrong about what is there."""

from __future__ import annotations

import re

from common.evaluation import Mark, ShownAnswer
from common.tabletop.claims import Comparison, compare
from common.tabletop.language import plural
from common.tabletop.scenes import NUMBERS, Scene


def marked_caption(text: str, scene: Scene) -> ShownAnswer:
    """Mark the names of what is made up or wrong, and list what is true instead."""
    comparison = compare(text, scene)
    marks: list[Mark] = []
    start = 0
    for claim in comparison.claims:
        # Claims stand in the order of the text; a denied thing before one is passed over by its name.
        match = re.compile(rf"\b{claim.mention.kind}s?\b", re.IGNORECASE).search(
            text, start
        )
        if match is None:
            continue
        start = match.end()
        if claim.thing is None or claim.repeated:
            marks.append((*match.span(), "made-up"))
        elif claim.wrong:
            marks.append((*match.span(), "wrong"))
    return ShownAnswer(
        text=text,
        marks=marks,
        note_label="in truth",
        notes=_notes(comparison),
        weight=_weight(comparison),
    )


def _notes(comparison: Comparison) -> tuple[str, ...]:
    notes = []
    things = [claim.thing for claim in comparison.claims if claim.wrong]
    for thing in (*things, *comparison.missed):
        if thing is not None:
            number = NUMBERS[thing.number - 1]
            named = plural(thing.kind, thing.number)
            notes.append(f"{number} {thing.colour} {named} ({thing.place})")
    return tuple(notes)


def _weight(comparison: Comparison) -> int:
    """Captions with the most made-up things first, then with the most missed, then with wrong parts."""
    made_up = 0
    wrong = 0
    for claim in comparison.claims:
        made_up += claim.thing is None or claim.repeated
        wrong += len(claim.wrong)
    return 100 * made_up + 10 * len(comparison.missed) + wrong
