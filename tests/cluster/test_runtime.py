"""The runtime's contract, kept by the in-process one and by Ray."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from cluster.ray_runtime import RayRuntime
from common.config import Cluster
from common.errors import UserError, plain_message
from common.protocols import Runtime
from tests.fakes import LocalRuntime


class Worker:
    """Holds a number; has plain and asynchronous methods."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.waiting = 0

    def make(self) -> tuple[int, Any]:
        return self.number, np.full(3, self.number)

    def total(self, array: Any) -> float:
        return float(np.sum(array)) + self.number

    def fail(self) -> None:
        raise UserError(f"expected a good number, got {self.number}; choose another")


class AsyncWorker(Worker):
    async def overlap(self) -> int:
        """How many calls were inside at once."""
        self.waiting += 1
        most = self.waiting
        for _ in range(50):
            await asyncio.sleep(0.01)
            most = max(most, self.waiting)
        self.waiting -= 1
        return most


@pytest.fixture(
    scope="module", params=["local", pytest.param("ray", marks=pytest.mark.real)]
)
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    found: Runtime = (
        LocalRuntime() if request.param == "local" else RayRuntime(Cluster())
    )
    yield found
    found.shutdown()


def run(scenario: Callable[[], Any]) -> Any:
    return asyncio.run(scenario())


def test_references_are_passed_on_and_read_by_the_receiver(runtime: Runtime) -> None:
    """3 x 2 + 5 = 11."""

    async def scenario() -> tuple[int, float]:
        first = runtime.spawn(Worker, 2, name="first", num_cpus=0, num_gpus=0)
        second = runtime.spawn(Worker, 5, name="second", num_cpus=0, num_gpus=0)
        number, array = first.call_split("make", 2)
        return await number, await second.call("total", array)

    assert run(scenario) == (2, 11.0)


def test_asynchronous_methods_overlap(runtime: Runtime) -> None:
    async def scenario() -> list[int]:
        worker = runtime.spawn(AsyncWorker, 1, name="async", num_cpus=0, num_gpus=0)
        return list(await asyncio.gather(*(worker.call("overlap") for _ in range(3))))

    assert max(run(scenario)) == 3


def test_an_error_keeps_its_type_and_its_one_line(runtime: Runtime) -> None:
    async def scenario() -> None:
        await runtime.spawn(Worker, 7, name="failing", num_cpus=0, num_gpus=0).call(
            "fail"
        )

    with pytest.raises(UserError) as error:
        run(scenario)
    assert plain_message(error.value) == "expected a good number, got 7; choose another"


def test_a_stopped_worker_answers_no_more(runtime: Runtime) -> None:
    async def scenario() -> Any:
        worker = runtime.spawn(Worker, 1, name="stopped", num_cpus=0, num_gpus=0)
        await worker.call("make")
        runtime.stop(worker)
        return await worker.call("make")

    with pytest.raises(Exception, match=r"stopped|died|dead"):
        run(scenario)
