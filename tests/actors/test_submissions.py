"""Requests of a call: none of them is left with vLLM when the call ends early."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from actors.engine.submissions import Submissions, Submitted
from common.errors import Refused
from common.records import Dropped


class Vllm:
    """Answers a request with its number; `ends` says how each ends, "never" for one that runs on."""

    def __init__(self, *ends: str) -> None:
        self.ends = ends
        self.num_submitted = 0
        self.aborted: list[str] = []

    async def abort(self, ids: Sequence[str]) -> None:
        self.aborted += ids

    async def submit(self) -> Submitted[int]:
        number = self.num_submitted
        self.num_submitted += 1
        return Submitted(str(number), self._output(number), lambda output: number)

    def _output(self, number: int) -> Awaitable[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.ends[number] != "never":
            sequence = SimpleNamespace(finish_reason=self.ends[number])
            future.set_result(SimpleNamespace(outputs=[sequence]))
        return future


async def refuse() -> Submitted[int]:
    raise Refused("too_long", "a long prompt")


async def results_of(vllm: Vllm, *submits: Callable[[], Any]) -> list[int | Dropped]:
    async with Submissions[int](vllm.abort) as submissions:
        for number, submit in enumerate(submits):
            await submissions.add(f"row {number}", submit)
        return await submissions.results()


def test_results_stand_in_the_order_of_the_requests() -> None:
    """The second request is tried again after all were submitted, and fails for good; the third is refused."""
    vllm = Vllm("stop", "error", "length", "error")
    submits = (vllm.submit, vllm.submit, refuse, vllm.submit)
    results = asyncio.run(results_of(vllm, *submits))
    assert results[0] == 0
    assert isinstance(results[1], Dropped)
    assert (results[1].id, results[1].reason) == ("row 1", "engine_error")
    assert results[2:] == [Dropped("row 2", "too_long", "a long prompt"), 2]
    assert not vllm.aborted


def test_a_cancelled_call_aborts_its_requests_and_their_second_tries() -> None:
    vllm = Vllm("error", "stop", "never")

    async def cancelled() -> None:
        await asyncio.wait_for(results_of(vllm, vllm.submit, vllm.submit), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())
    assert vllm.aborted == ["0", "1", "2"]


def test_a_failure_while_submitting_aborts_what_was_submitted() -> None:
    vllm = Vllm("never")

    async def fail() -> Submitted[int]:
        raise MemoryError

    with pytest.raises(MemoryError):
        asyncio.run(results_of(vllm, vllm.submit, fail))
    assert vllm.aborted == ["0"]
