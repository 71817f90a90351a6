"""The budget of restarts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from common.errors import RunFailed

HOUR_S = 3600.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0


class Restarts:
    """How often the workers of a run may be restarted, all together, and how long one waits before it is."""

    def __init__(
        self, per_hour: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_hour = per_hour
        self._clock = clock
        # Of the last hour: when, and who.
        self._recent: deque[tuple[float, str]] = deque()

    def grant(self, name: str, fate: str) -> float:
        """Count one restart of this worker; returns the seconds to wait before it, twice as many every time.

        `fate` says in one line who was lost, and why.

        Raises:
            RunFailed: the budget of this hour is used up.
        """
        now = self._clock()
        while self._recent and now - self._recent[0][0] >= HOUR_S:
            self._recent.popleft()
        if len(self._recent) >= self._per_hour:
            raise RunFailed(self._refusal(fate))
        before = sum(other == name for _, other in self._recent)
        self._recent.append((now, name))
        return min(FIRST_PAUSE_S * 2.0**before, LONGEST_PAUSE_S)

    def _refusal(self, fate: str) -> str:
        if not self._per_hour:
            return fate
        names = sorted({other for _, other in self._recent})
        return (
            f"{fate}; expected at most {self._per_hour} restarts an hour "
            f"(cluster.max_restarts_per_hour), got one more, after those of {', '.join(names)}"
        )
