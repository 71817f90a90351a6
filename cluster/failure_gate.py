"""Tells rows that an endpoint cannot answer from an endpoint that is gone.

A refusal or a useless reply is that row's own, once the endpoint has been seen to work: it is recorded as dropped at
once. So is a single other failure, as soon as a later row is answered. Many of these in a row, with no answer between
them, are the endpoint's: then the job stops and those rows stay undone, for the next run.
"""

from __future__ import annotations

from collections.abc import Callable

from actors.injection import Injection
from common.errors import UserError
from common.records import Dropped, PreferencePair

FAILURES_IN_A_ROW = 16
SILENT_IN_A_ROW = 3
"""The limit while the endpoint has given no reply yet and only silence came."""
_SILENCE = {"endpoint_unreachable", "endpoint_timeout"}
_OF_THE_ROW = {"endpoint_refused", "endpoint_garbage", "endpoint_empty", "cut_off"}


class FailureGate:
    """Passes injections on to `record`, failures held back until an answer shows that the endpoint is there.

    `worked` tells whether this or an earlier run of the job got a reply that could be read.
    """

    def __init__(self, record: Callable[[Injection], None], worked: bool) -> None:
        self._record = record
        self._held: list[Injection] = []
        self._answered = False
        self.worked = worked

    def add(self, injection: Injection) -> None:
        """Raises UserError when the endpoint counts as gone."""
        self.worked = (
            self.worked
            or injection.asked == "answered"
            or isinstance(injection.result, PreferencePair)
        )
        if injection.asked != "failed" or (
            self.worked and _reason(injection) in _OF_THE_ROW
        ):
            self._record(injection)
            if injection.asked == "answered":
                self._answered = True
                self._release()
            return
        self._held.append(injection)
        silent = (
            not self._answered and {_reason(held) for held in self._held} <= _SILENCE
        )
        if len(self._held) >= (SILENT_IN_A_ROW if silent else FAILURES_IN_A_ROW):
            raise self._gone()

    def close(self) -> None:
        """At the end of the rows: failures are recorded, unless the endpoint never gave one reply."""
        if self._held and not self.worked:
            raise self._gone()
        self._release()

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
    return injection.result.reason if isinstance(injection.result, Dropped) else None
