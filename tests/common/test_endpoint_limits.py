"""Budget and circuit breaker, without a server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from common.config.eyes import Budget, CircuitBreaker, Endpoint
from common.endpoint.circuit import Circuit
from common.endpoint.errors import EndpointError
from common.endpoint.reply_cache import ChatReply
from common.endpoint.spending import Spending
from common.errors import Halted

PRICES = Endpoint(base_url="http://h/v1", model="m", price_in=2.0, price_out=10.0)
REPLY = ChatReply("yes", False, 1000, 100)
"""Costs 1000 * 2 / 1e6 + 100 * 10 / 1e6 = 0.003."""


@pytest.mark.parametrize(
    ("budget", "num_calls", "message"),
    [
        (Budget(calls=3), 3, r"^b\.calls: expected to spend at most 3, got 3, so"),
        (Budget(tokens=2000), 2, r"^b\.tokens: .* at most 2000, got 2200, so"),
        (Budget(money=0.008), 3, r"^b\.money: .* at most 0\.008, got 0\.009, so"),
    ],
)
def test_a_budget_stops_when_it_is_used_up(
    budget: Budget, num_calls: int, message: str
) -> None:
    spending = Spending(PRICES, budget, [], "b")
    for _ in range(num_calls):
        spending.begin_call()
        spending.add(REPLY)
    with pytest.raises(Halted, match=message):
        spending.begin_call()
    # What was paid for by an earlier start counts.
    resumed = Spending(PRICES, budget, [REPLY] * num_calls, "b")
    with pytest.raises(Halted, match=message):
        resumed.begin_call()


def test_a_budget_of_tokens_needs_a_server_that_counts() -> None:
    spending = Spending(PRICES, Budget(tokens=5), [], "b")
    spending.begin_call()
    spending.add(ChatReply("yes", False, None, None))
    with pytest.raises(Halted, match="without `usage`"):
        spending.begin_call()


def test_workers_share_a_budget() -> None:
    assert Budget(calls=10, money=1.0).share(4) == Budget(calls=2, money=0.25)
    assert Budget(calls=1).share(4) == Budget(calls=1)
    assert Budget().share(3) == Budget()


class Server:
    """Answers or fails as `works` says; `times` are when it was asked."""

    def __init__(self) -> None:
        self.works = False
        self.reason = "endpoint_error"
        self.times: list[float] = []

    async def request(self) -> str:
        self.times.append(time.monotonic())
        await asyncio.sleep(0)
        if self.works:
            return "yes"
        raise EndpointError(self.reason, "no")


def outcomes(
    server: Server, count: int, settings: CircuitBreaker, between: Callable[[int], None]
) -> list[str]:
    """What `count` requests one after the other come to; `between` is called before each."""

    async def ask_all() -> list[str]:
        circuit = Circuit(settings)
        results: list[str] = []
        for number in range(count):
            between(number)
            try:
                results.append(await circuit.run(server.request))
            except EndpointError as error:
                results.append(error.reason)
        return results

    return asyncio.run(ask_all())


def test_it_pauses_tries_once_and_closes_again() -> None:
    server = Server()

    def recover(number: int) -> None:
        server.works = number >= 4

    settings = CircuitBreaker(failures=3, pause_s=0.05, max_pauses=5)
    results = outcomes(server, 6, settings, recover)
    assert results == ["endpoint_error"] * 4 + ["yes"] * 2
    gaps = [later - earlier for earlier, later in pairwise(server.times)]
    # Three failures open it; the fourth request waits and fails, the fifth waits and closes it.
    assert min(gaps[2], gaps[3]) >= 0.05 > max(gaps[0], gaps[1], gaps[4])


def test_it_is_given_up_for_a_pause_at_a_time() -> None:
    server = Server()
    settings = CircuitBreaker(failures=1, pause_s=0.05, max_pauses=1)

    def wait(number: int) -> None:
        if number == 4:
            server.works = True
            time.sleep(0.06)

    results = outcomes(server, 6, settings, wait)
    assert results[:2] == ["endpoint_error"] * 2
    assert results[2:4] == ["endpoint_down"] * 2
    assert results[4:] == ["yes"] * 2
    assert len(server.times) == 4


def test_only_one_request_tries_a_half_open_circuit() -> None:
    server = Server()

    async def ask() -> list[float]:
        circuit = Circuit(CircuitBreaker(failures=1, pause_s=0.05, max_pauses=2))
        with pytest.raises(EndpointError):
            await circuit.run(server.request)
        waiting = [circuit.run(server.request) for _ in range(5)]
        await asyncio.gather(*waiting, return_exceptions=True)
        return server.times

    times = asyncio.run(ask())
    # Two tries, a pause before each; the others failed at once when hope was gone.
    assert len(times) == 3
    assert times[1] - times[0] >= 0.05 and times[2] - times[1] >= 0.05


@pytest.mark.parametrize("reason", ["endpoint_rate_limited", "endpoint_refused"])
def test_a_server_that_answers_is_no_broken_one(reason: str) -> None:
    server = Server()
    server.reason = reason
    settings = CircuitBreaker(failures=1, pause_s=60, max_pauses=1)
    results = outcomes(server, 4, settings, lambda number: None)
    assert results == [reason] * 4
