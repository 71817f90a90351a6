"""Who worked when: a run's calls to its workers as stretches of time.

The run page draws them and tells from them who was idle; the terminal shows how busy engines and judges are.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

WORK_OF_METHOD = {
    "start": "start",
    "generate": "sample",
    "bdhs_pairs": "sample",
    "score": "score",
    "rank": "judge",
    "judge": "judge",
    "step": "train",
    "push": "push",
    "receive": "load",
    "load": "load",
    "prove": "prove",
    "save": "save",
    "export": "save",
    "sleep": "sleep",
    "wake": "wake",
}
"""What a call to a worker is work of; calls that are not here ask or tell it something in no time."""
WINDOW_S = 60.0
"""How far back `busy_frac` looks."""


@dataclass(frozen=True, slots=True)
class Work:
    """One call to a worker.

    Attributes:
        who: name of the worker, such as `rollout/0`; `learner` stands for all ranks, which work in step.
        what: a value of `WORK_OF_METHOD`.
        begin: of the monotonic clock.
        end: the same; None while it runs.
        count: groups or pairs that it was about.
    """

    who: str
    what: str
    begin: float
    end: float | None = None
    count: int = 0


class WorkLog:
    """Takes down the calls of one run.

    Args:
        record: is given every call when it is over.
    """

    def __init__(self, record: Callable[[Work], None]) -> None:
        self._record = record
        self._numbers = itertools.count()
        self._running: dict[int, Work] = {}
        self._recent: deque[Work] = deque()
        # By kind: whoever has worked once, so that those who have nothing to do count too.
        self._seen: defaultdict[str, set[str]] = defaultdict(set)
        self._began = time.monotonic()

    @contextmanager
    def during(self, who: str, method: str, args: Sequence[Any]) -> Iterator[None]:
        """Around the wait for a worker's answer."""
        what = WORK_OF_METHOD.get(method)
        if what is None:
            yield
            return
        number = next(self._numbers)
        begin = time.monotonic()
        count = _size(args)
        self._running[number] = running = Work(who, what, begin, None, count)
        self._seen[_kind(running)].add(who)
        try:
            yield
        finally:
            del self._running[number]
            self._end(Work(who, what, begin, time.monotonic(), count))

    def _end(self, work: Work) -> None:
        self._recent.append(work)
        self._forget_before(time.monotonic() - WINDOW_S)
        # A journal that cannot be written stops the run by its next event; here it would hide the call's own error.
        with suppress(OSError):
            self._record(work)

    def _forget_before(self, begin: float) -> None:
        while self._recent and (self._recent[0].end or 0) < begin:
            self._recent.popleft()

    def running(self, kind: str) -> list[Work]:
        """The calls to workers of a kind, such as `rollout`, that are not answered yet."""
        return [work for work in list(self._running.values()) if _kind(work) == kind]

    def busy_frac(self, kind: str) -> float:
        """The share of the last minute, 0-1, in which workers of a kind had something to do; a mean over them."""
        now = time.monotonic()
        begin = max(self._began, now - WINDOW_S)
        stretches: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for work in [*list(self._recent), *list(self._running.values())]:
            end = now if work.end is None else work.end
            if _kind(work) == kind and end > begin:
                stretches[work.who].append((max(begin, work.begin), end))
        num_workers = len(self._seen[kind])
        if num_workers == 0 or now <= begin:
            return 0.0
        seconds = sum(covered_s(of_worker) for of_worker in stretches.values())
        return seconds / num_workers / (now - begin)


def covered_s(stretches: Sequence[tuple[float, float]]) -> float:
    """Seconds that (begin, end) stretches cover, those that overlap counted once."""
    total = 0.0
    covered_until = float("-inf")
    for begin, end in sorted(stretches):
        total += max(0.0, end - max(begin, covered_until))
        covered_until = max(covered_until, end)
    return total


def noted(
    log: WorkLog | None, who: str, method: str, args: Sequence[Any]
) -> AbstractContextManager[None]:
    """`log.during`, or nothing where nobody keeps a log."""
    return nullcontext() if log is None else log.during(who, method, args)


def _kind(work: Work) -> str:
    return work.who.partition("/")[0]


def _size(args: Sequence[Any]) -> int:
    """The number of groups or pairs in the arguments of a call; 0 where it is about none."""
    for value in args:
        if isinstance(value, list):
            return len(value)
    return 0
