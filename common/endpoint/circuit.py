"""A circuit breaker: an endpoint that keeps failing is left alone for a while, then tried by one request.

closed ── `failures` in a row ──▶ open for `pause_s` ──▶ half open: one request ─┬─ answered ─▶ closed
                                   ▲                                             └─ failed ─┐
                                   └────────────────────────────────────────────────────────┘
                                   after `max_pauses` in a row, what is asked during a pause fails at once
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from common.config.eyes import CircuitBreaker
from common.endpoint.errors import EndpointError

T = TypeVar("T")

_SIGNS_OF_LIFE = ("endpoint_rate_limited", "endpoint_refused")
"""An endpoint that answers so works: it is busy, or does not like this request."""


class Circuit:
    """Lets requests through to one endpoint, or keeps them waiting."""

    def __init__(self, settings: CircuitBreaker) -> None:
        self._settings = settings
        self._num_failures = 0
        self._num_pauses = 0
        # Seconds of the monotonic clock; None while closed.
        self._open_until: float | None = None
        # Whoever holds it is the one request of a half-open circuit.
        self._turn = asyncio.Lock()

    async def run(self, request: Callable[[], Awaitable[T]]) -> T:
        """Send the request when its turn comes.

        Raises:
            EndpointError: the request's own, or `endpoint_down` when the endpoint was given up.
        """
        if self._open_until is None:
            return await self._counted(request)
        self._check_hope()
        async with self._turn:
            # It may have closed, or been given up, while others had their turn.
            if self._open_until is not None:
                self._check_hope()
                await asyncio.sleep(self._remaining_s)
                return await self._counted(request)
        return await self._counted(request)

    @property
    def _remaining_s(self) -> float:
        assert self._open_until is not None
        return max(0.0, self._open_until - time.monotonic())

    def _check_hope(self) -> None:
        # Not for ever: the first request after a pause tries again.
        is_given_up = self._num_pauses > self._settings.max_pauses
        if is_given_up and self._remaining_s > 0:
            raise EndpointError(
                "endpoint_down",
                f"it failed {self._num_failures} times in a row and is left alone for {self._settings.pause_s:g} s",
            )

    async def _counted(self, request: Callable[[], Awaitable[T]]) -> T:
        try:
            result = await request()
        except EndpointError as error:
            if error.reason in _SIGNS_OF_LIFE:
                self._close()
            else:
                self._note_failure()
            raise
        self._close()
        return result

    def _close(self) -> None:
        self._num_failures = 0
        self._num_pauses = 0
        self._open_until = None

    def _note_failure(self) -> None:
        self._num_failures += 1
        if self._num_failures < self._settings.failures:
            return
        # Requests that were in flight when it opened are no reason to wait longer.
        if self._open_until is None or self._remaining_s == 0:
            self._num_pauses += 1
            self._open_until = time.monotonic() + self._settings.pause_s
