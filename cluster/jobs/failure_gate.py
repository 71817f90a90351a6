"""Tells rows that an endpoint cannot answer from an endpoint that is gone.

Once the endpoint has been seen to work, a refusal or a useless reply concerns that row alone: the row is dropped at
once. Other failures (silence, server errors) are held back until a later row is answered. Many of them in a row mean
that the endpoint is gone: then the job stops, and the next run does those rows again.
"""

from __future__ import annotations

from collections.abc import Callable

from actors.povid.injection import Injection
from common.errors import UserError
from common.records import Dropped, PreferencePair

FAILURES_IN_A_ROW = 16
SILENT_IN_A_ROW = 3
"""The limit while the endpoint has given no reply yet and every failure was silence."""
_SILENCE = {"endpoint_unreachable", "endpoint_timeout"}
_REASONS_OF_A_ROW = {
    "endpoint_refused",
    "endpoint_garbage",
    "endpoint_empty",
    "cut_off",
}


class FailureGate:
    """Passes injections on to `record`, and holds failures back until an answer shows that the endpoint is there.

    `worked` says whether this or an earlier run of the job got a reply that could be read.
    """

    def __init__(self, record: Callable[[Injection], None], worked: bool) -> None:
        self._record = record
        self._held: list[Injection] = []
        self._answered = False
        self.worked = worked

    def add(self, injection: Injection) -> None:
        """Record an injection or hold it back (UserError when the endpoint counts as gone)."""
        is_answered = injection.asked == "answered"
        if is_answered or isinstance(injection.result, PreferencePair):
            self.worked = True
        concerns_row = self.worked and _reason(injection) in _REASONS_OF_A_ROW
        if injection.asked != "failed" or concerns_row:
            self._record(injection)
            if is_answered:
                self._answered = True
                self._release()
            return
        self._held.append(injection)
        if len(self._held) >= self._limit():
            raise self._gone()

    def close(self) -> None:
        """Record the failures at the end of the rows (UserError when the endpoint never gave one reply)."""
        if self._held and not self.worked:
            raise self._gone()
        self._release()

    def _limit(self) -> int:
        # An address where nobody answers is found out soon; a server that answers with errors may recover.
        reasons = set(map(_reason, self._held))
        is_silent = not self._answered and reasons <= _SILENCE
        return SILENT_IN_A_ROW if is_silent else FAILURES_IN_A_ROW

    def _release(self) -> None:
        for injection in self._held:
            self._record(injection)
        self._held = []

    def _gone(self) -> UserError:
        last = self._held[-1].result
        assert isinstance(last, Dropped), "only rows without a pair are held"
        return UserError(
            f"--endpoint: expected replies, got {len(self._held)} failures in a row, the last one {last.reason} "
            f"({last.detail}); check that it is up, its address, the model's name and the API key, then run this again"
        )


def _reason(injection: Injection) -> str | None:
    """Why the row was dropped, None when it made a pair."""
    if isinstance(injection.result, Dropped):
        return injection.result.reason
    return None
