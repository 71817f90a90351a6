"""Tells rows that an endpoint cannot answer from an endpoint that is gone.

A single failure is that row's own: it is recorded as dropped as soon as a later row is answered. Many in a row, with
no answer between them, are the endpoint's: then the job stops and those rows stay undone, for the next run.
"""

from __future__ import annotations

from collections.abc import Callable

from actors.injection import Injection
from common.errors import UserError
from common.records import Dropped

FAILURES_IN_A_ROW = 16
SILENT_IN_A_ROW = 3
"""The limit while the endpoint has given no reply yet and only silence came."""
_SILENCE = {"endpoint_unreachable", "endpoint_timeout"}


class FailureGate:
    """Passes injections on to `record`, failures held back until an answer shows that the endpoint is there.

    `resumed` says that an earlier run of the job recorded rows.
    """

    def __init__(self, record: Callable[[Injection], None], resumed: bool) -> None:
        self._record = record
        self._held: list[Injection] = []
        self._answered = False
        self._worked = resumed

    def add(self, injection: Injection) -> None:
        """Raises UserError when the endpoint counts as gone."""
        if injection.asked != "failed":
            self._record(injection)
            if injection.asked == "answered":
                self._answered = self._worked = True
                self._release()
            return
        self._held.append(injection)
        silent = not self._answered and self._reasons() <= _SILENCE
        if len(self._held) >= (SILENT_IN_A_ROW if silent else FAILURES_IN_A_ROW):
            raise self._gone()

    def close(self) -> None:
        """At the end of the rows: failures are recorded, unless the endpoint never gave one reply."""
        if self._held and not self._worked:
            raise self._gone()
        self._release()

    def _release(self) -> None:
        for injection in self._held:
            self._record(injection)
        self._held = []

    def _reasons(self) -> set[str]:
        return {injection.result.reason for injection in self._held if isinstance(injection.result, Dropped)}

    def _gone(self) -> UserError:
        last = self._held[-1].result
        assert isinstance(last, Dropped), "only rows without a pair are held"
        return UserError(
            f"--endpoint: expected replies, got {len(self._held)} failures in a row, the last one {last.reason} "
            f"({last.detail}); check that it is up, its address, the model's name and the API key, then run this again"
        )
