"""The requests of one call that are with vLLM: read in order, tried once more, never left behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from actors.engine.causes import failure_explained
from actors.vllm_api import RequestOutput
from common.errors import Refused
from common.records import Dropped

NUM_TRIES = 2
"""How often a request is given to vLLM that fails inside it."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Submitted(Generic[T]):
    """A request that is with vLLM under this id.

    Attributes:
        output: awaiting it gives the finished output.
        read: what the output says.
    """

    id: str
    output: Awaitable[RequestOutput]
    read: Callable[[RequestOutput], T]


Submit: TypeAlias = Callable[[], Awaitable[Submitted[T]]]
"""Hands a request to vLLM. Raises Refused when it cannot be run."""


@dataclass(frozen=True, slots=True)
class _Request(Generic[T]):
    """A request of the call, and what became of its first try."""

    id: str
    submit: Submit[T]
    first: Submitted[T] | Dropped


class Submissions(Generic[T]):
    """Those of one call, as a context: when it fails or its caller is cancelled, all of them are aborted.

    Args:
        abort: takes vLLM's ids.
    """

    def __init__(self, abort: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        self._abort = abort
        self._requests: list[_Request[T]] = []
        # vLLM's ids, of further tries as well.
        self._ids: list[str] = []

    async def __aenter__(self) -> Submissions[T]:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            await self._abort(self._ids)

    async def add(self, id: str, submit: Submit[T]) -> None:
        """Submit a request; it may be submitted again while results are awaited.

        Args:
            id: what its drop calls it.
        """
        first = await self._try(id, submit)
        self._requests.append(_Request(id, submit, first))

    async def results(self) -> list[T | Dropped]:
        """One per request, in order."""
        return [await self._result(request) for request in self._requests]

    async def _result(self, request: _Request[T]) -> T | Dropped:
        """What a request gives, which is submitted once more when vLLM fails at it alone.

        vLLM ends a request with the reason "error" when another try may help: its two processes did not agree on which
        pictures both have, and now they do.
        """
        entry = request.first
        for attempt in range(NUM_TRIES):
            if attempt > 0:
                entry = await self._try(request.id, request.submit)
            if isinstance(entry, Dropped):
                return entry
            with failure_explained():
                output = await entry.output
            if all(sequence.finish_reason != "error" for sequence in output.outputs):
                return entry.read(output)
        detail = f"vLLM ended the request with an error {NUM_TRIES} times; see its log"
        return Dropped(request.id, "engine_error", detail)

    async def _try(self, id: str, submit: Submit[T]) -> Submitted[T] | Dropped:
        try:
            submitted = await submit()
        except Refused as error:
            return Dropped(id, error.reason, str(error))
        self._ids.append(submitted.id)
        return submitted
