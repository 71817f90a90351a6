"""Puts a judge to the test on a labelled pair set: every pair in both orders, with its pictures and with grey ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cluster.evaluation.chunks import OnProgress, in_chunks
from cluster.evaluation.verdicts import Comparer
from cluster.progress import ProgressReport
from common.data.image_conditions import ChangeImages, blank_images
from common.data.images import ImageStore
from common.errors import Refused
from common.records import (
    Completion,
    Dropped,
    PreferencePair,
    Response,
    RolloutGroup,
    Verdict,
)
from common.row_faults import drop_report
from reward.judge_quality import BothOrders

CHOSEN_FIRST, CHOSEN_SECOND = "chosen_first", "chosen_second"


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """The verdicts on a pair set, the seconds that those with the true pictures took, and what servers answered."""

    seen: dict[str, BothOrders] = field(default_factory=dict)
    blind: dict[str, BothOrders] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    seconds: float = 0.0
    usage: dict[str, float] = field(default_factory=dict)

    def drop_report(self) -> str:
        """Why verdicts are missing, in words."""
        return drop_report(self.dropped)


async def judge_pairs(
    reward: Comparer, pairs: Sequence[PreferencePair], store: ImageStore | None
) -> JudgedPairs:
    """Ask the judge about every pair.

    Args:
        store: where grey pictures are put; None leaves the blind question out.
    """
    judged = JudgedPairs()
    passes = 1 if store is None else 2
    began = time.monotonic()
    with ProgressReport("judging", 2 * passes * len(pairs)) as bar:

        def count_up(num_done: int) -> None:
            bar.advance(count=num_done)

        seen, dropped = await _both_orders(reward, pairs, count_up)
        seconds = time.monotonic() - began
        judged.seen.update(seen)
        judged.dropped.extend(dropped)
        if store is not None:
            grey, unreadable = _greyed(pairs, blank_images(store))
            blind, dropped = await _both_orders(reward, grey, count_up)
            judged.blind.update(blind)
            judged.dropped.extend([*unreadable, *dropped])
    return JudgedPairs(judged.seen, judged.blind, judged.dropped, seconds)


async def _both_orders(
    reward: Comparer, pairs: Sequence[PreferencePair], on_progress: OnProgress
) -> tuple[dict[str, BothOrders], list[Dropped]]:
    """The verdicts by pair id, and why the others are missing."""
    groups: list[RolloutGroup] = []
    for pair in pairs:
        groups.append(_group(pair, CHOSEN_FIRST, (pair.chosen, pair.rejected)))
        groups.append(_group(pair, CHOSEN_SECOND, (pair.rejected, pair.chosen)))
    verdicts = await in_chunks([reward.judge], groups, on_progress)
    judged: dict[str, BothOrders] = {}
    dropped: list[Dropped] = []
    for index, pair in enumerate(pairs):
        first, second = verdicts[2 * index], verdicts[2 * index + 1]
        if isinstance(first, Verdict) and isinstance(second, Verdict):
            judged[pair.id] = BothOrders(first, second)
            continue
        # One reason for a pair, also where both verdicts are missing.
        missing = first if isinstance(first, Dropped) else second
        assert isinstance(missing, Dropped)
        dropped.append(replace(missing, id=pair.id))
    return judged, dropped


def _group(
    pair: PreferencePair, order: str, sides: tuple[Response, Response]
) -> RolloutGroup:
    completions: list[Completion] = []
    for side in sides:
        tokens = side.token_ids or ()
        completions.append(Completion(tokens, side.text, 0, 0, "stop"))
    return RolloutGroup(f"{pair.id}/{order}", pair.prompt, (), 0, tuple(completions))


def _greyed(
    pairs: Sequence[PreferencePair], blank: ChangeImages
) -> tuple[list[PreferencePair], list[Dropped]]:
    """The pairs with grey pictures; those without a picture, or with one that cannot be read, are left out."""
    grey: list[PreferencePair] = []
    unreadable: list[Dropped] = []
    for pair in pairs:
        # Nothing would change.
        if not pair.prompt.images:
            continue
        try:
            changed = blank(pair)
        except Refused as error:
            unreadable.append(Dropped(pair.id, error.reason, str(error)))
            continue
        assert changed is not None
        grey.append(changed)
    return grey, unreadable
