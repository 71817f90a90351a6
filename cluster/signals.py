"""How commands end when they are told to: SIGTERM, as SLURM, Kubernetes and `ray job stop` send it, and Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import NoReturn

from common.errors import Halted

ENDING = (signal.SIGINT, signal.SIGTERM)
STATUS_OF_SIGNALS = 128
"""Shells add the number of a signal to it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


class Interrupted(Halted):
    """A run ended after its step and saved it, because a signal asked for it.

    Attributes:
        status: the exit status of the command.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = STATUS_OF_SIGNALS + number
        self._signal = signal.Signals(number)

    def __str__(self) -> str:
        return f"{self._signal.name} asked for an end"


@contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises `Terminated`, so that everything is cleaned up."""
    # Python lets the main thread alone set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


class EndRequests:
    """While it is open, the first signal asks for an end, and a second one ends at once. A context manager.

    It does nothing outside of the main thread, where Python lets nobody handle signals.

    Args:
        ask: called with the reason in the running event loop.
    """

    def __init__(self, ask: Callable[[Interrupted], None]) -> None:
        self._ask = ask
        self._is_asked = False
        self._hears = threading.current_thread() is threading.main_thread()
        self._handlers_before = {number: signal.getsignal(number) for number in ENDING}

    def __enter__(self) -> None:
        if not self._hears:
            return
        loop = asyncio.get_running_loop()
        for number in ENDING:
            loop.add_signal_handler(number, self._on_signal, number)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._hears:
            return
        loop = asyncio.get_running_loop()
        for number, handler in self._handlers_before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def _on_signal(self, number: int) -> None:
        if self._is_asked:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self._is_asked = True
        self._ask(Interrupted(number))
