"""Who worked when: one lane per worker, stretches that the eye cannot tell apart drawn as one, and the idle shares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

from cluster.run_page.store import Call, RunStore
from cluster.runtime.work_log import covered_s

MAX_STRETCHES = 400
"""Of a lane in one view; shorter pauses than its length / this are not drawn."""
PUSHES, CHECKPOINTS = "pushes", "checkpoints"
OF_PUSHES = frozenset(("push", "load", "prove"))
NOT_IDLE_LANES = frozenset((PUSHES, CHECKPOINTS))
"""Lanes of things that happen, not of workers who could be idle."""

LOADING = "start"
"""The work of a worker that loads its models."""

Span: TypeAlias = tuple[float, float]
"""Begin and end, in seconds since 1970."""


def timeline(
    store: RunStore, begin: float | None = None, end: float | None = None
) -> dict[str, Any]:
    """The lanes between two times, by default of the whole training.

    Returns:
        {"begin", "end", "lanes": [{"who", "idle_frac", "stretches": [[kind, begin, end, calls], …]}, …]}; `idle_frac`
        is None for pushes and checkpoints, and is of the times in which the run worked: between two starts nobody was.
    """
    by_start = store.work_by_start()
    work = list(chain.from_iterable(by_start))
    calls = [*work, *_checkpoints(store.events["checkpoint"])]
    calls += [_push(call) for call in work if call[1] in OF_PUSHES]
    trained = [call for call in work if call[1] == "train"]
    if not calls:
        return {"begin": None, "end": None, "lanes": []}
    if begin is None:
        # Loading models before the first step would take most of the picture.
        begin = min((call[2] for call in trained), default=calls[0][2])
    if end is None:
        # Whoever waits for the last checkpoint, or answers the test split, is not idle in the training.
        end = max(call[3] for call in (trained or calls))
    by_lane: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call[3] > begin and call[2] < end:
            by_lane[call[0]].append(call)
    spans = _clipped(_spans(by_start), begin, end)
    lanes: list[dict[str, Any]] = []
    for who in sorted(by_lane, key=_lane_order):
        lane = _lane(who, by_lane[who], begin, end)
        if who not in NOT_IDLE_LANES:
            lane["idle_frac"] = _idle_frac(by_lane[who], spans)
        lanes.append(lane)
    return {"begin": begin, "end": end, "lanes": lanes}


def idle_shares(store: RunStore) -> dict[str, float]:
    """Worker -> the share of the training, 0-1, in which nothing was asked of it."""
    shares: dict[str, float] = {}
    for lane in timeline(store)["lanes"]:
        if lane["idle_frac"] is not None:
            shares[lane["who"]] = lane["idle_frac"]
    return shares


def _spans(by_start: Iterable[Sequence[Call]]) -> list[Span]:
    """First to last call of each start; while models are loaded nobody could work."""
    spans: list[Span] = []
    for calls in by_start:
        worked = [call for call in calls if call[1] != LOADING]
        if worked:
            begin = min(call[2] for call in worked)
            spans.append((begin, max(call[3] for call in worked)))
    return spans


def _clipped(spans: Iterable[Span], begin: float, end: float) -> list[Span]:
    """The parts of spans between two times."""
    parts = [(max(begin, span[0]), min(end, span[1])) for span in spans]
    return [part for part in parts if part[1] > part[0]]


def _idle_frac(calls: Sequence[Call], spans: Sequence[Span]) -> float | None:
    """The share of the spans in which none of the calls ran; None without spans."""
    span_s = covered_s(spans)
    if not span_s:
        return None
    stretches = [(call[2], call[3]) for call in calls]
    busy: list[Span] = []
    for begin, end in spans:
        busy += _clipped(stretches, begin, end)
    return 1 - covered_s(busy) / span_s


def _lane(who: str, calls: Sequence[Call], begin: float, end: float) -> dict[str, Any]:
    clipped: list[Call] = []
    for name, kind, call_begin, call_end, count in calls:
        clipped.append((name, kind, max(begin, call_begin), min(end, call_end), count))
    pause_s = (end - begin) / MAX_STRETCHES
    stretches: list[list[Any]] = []
    by_kind: dict[str, list[Call]] = defaultdict(list)
    for call in clipped:
        by_kind[call[1]].append(call)
    for kind, of_kind in by_kind.items():
        for stretch in _merged(of_kind, pause_s):
            stretches.append([kind, *stretch])
    return {"who": who, "idle_frac": None, "stretches": stretches}


def _merged(calls: Sequence[Call], pause_s: float) -> list[tuple[float, float, int]]:
    """(begin, end, calls) of stretches with pauses of more than `pause_s` between them."""
    merged: list[tuple[float, float, int]] = []
    for _, _, begin, end, _ in sorted(calls, key=lambda call: call[2]):
        if merged and begin - merged[-1][1] <= pause_s:
            first, last, count = merged[-1]
            merged[-1] = (first, max(last, end), count + 1)
        else:
            merged.append((begin, end, 1))
    return merged


def _checkpoints(events: Iterable[Mapping[str, Any]]) -> list[Call]:
    calls: list[Call] = []
    for event in events:
        seconds = event.get("copy_s", 0.0) + event.get("write_s", 0.0)
        end = event["time"]
        calls.append((CHECKPOINTS, "checkpoint", end - seconds, end, 1))
    return calls


def _push(call: Call) -> Call:
    return (PUSHES, *call[1:])


def _lane_order(who: str) -> tuple[int, str, int]:
    """Engines, judges, the learner, then what happens between them."""
    kind, _, number = who.partition("/")
    kinds = ("rollout", "reward", "learner", PUSHES, CHECKPOINTS)
    rank = kinds.index(kind) if kind in kinds else len(kinds)
    return rank, kind, int(number) if number.isdigit() else 0
