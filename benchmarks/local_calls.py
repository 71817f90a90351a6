"""Calls to a worker of this process, sent as those to an actor are; for tests and simulations."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from typing import Any

from common.protocols import Pulse


class LocalCalls(ABC):
    """A `common.protocols.Handle` whose references are tasks of this event loop."""

    def call(self, method: str, *args: Any) -> Awaitable[Any]:
        """Start a call; the task is the reference to its result."""
        return asyncio.ensure_future(self._run(method, args))

    def call_split(
        self, method: str, num_returns: int, *args: Any
    ) -> Sequence[Awaitable[Any]]:
        """Start a call with several results, and a reference to each."""
        whole = asyncio.ensure_future(self._run(method, args))

        async def part(index: int) -> Any:
            return (await whole)[index]

        return [asyncio.ensure_future(part(index)) for index in range(num_returns)]

    def pulse(self) -> Awaitable[Pulse]:
        """Start a call for the worker's pulse."""
        return asyncio.ensure_future(self._run("pulse", ()))

    def death(self, error: BaseException) -> str | None:
        """None: a worker of this process does not die alone."""
        return None

    @abstractmethod
    async def _run(self, method: str, args: Sequence[Any]) -> Any:
        """Call the worker."""


async def values_of(args: Sequence[Any]) -> list[Any]:
    """Arguments with references read, as a receiver on Ray finds them."""
    values = list(args)
    for index, arg in enumerate(args):
        if isinstance(arg, asyncio.Future):
            values[index] = await arg
    return values
