"""The runtime's contract, kept by the in-process one and by Ray."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.runtime.ray_runtime import RayRuntime
from common.config import Cluster, RunConfig
from common.config.overrides import load_config
from common.errors import UserError, plain_message
from common.protocols import Handle, Pulse, Runtime, Vitals
from reward.judges.factory import with_checked_judge
from reward.worker import RewardWorker
from tests.fakes.runtime import LocalRuntime
from tests.reward.builders import group, prompt


class Worker:
    """Holds a number; has plain and asynchronous methods."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.num_inside = 0

    def make(self) -> tuple[int, Any]:
        return self.number, np.full(3, self.number)

    def total(self, array: Any) -> float:
        return float(np.sum(array)) + self.number

    def fail(self) -> None:
        raise UserError(f"expected a good number, got {self.number}; choose another")


class AsyncWorker(Worker):
    async def overlap(self) -> int:
        """How many calls were inside at once."""
        self.num_inside += 1
        most = self.num_inside
        for _ in range(50):
            await asyncio.sleep(0.01)
            most = max(most, self.num_inside)
        self.num_inside -= 1
        return most


@pytest.fixture(
    scope="module", params=["local", pytest.param("ray", marks=pytest.mark.real)]
)
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    runtime: Runtime = LocalRuntime()
    if request.param == "ray":
        runtime = RayRuntime(Cluster())
    yield runtime
    runtime.shutdown()


def spawn(runtime: Runtime, worker: type, number: int) -> Handle:
    return runtime.spawn(worker, number, name="worker", num_cpus=0, num_gpus=0)


def test_references_are_passed_on_and_read_by_the_receiver(runtime: Runtime) -> None:
    """3 x 2 + 5 = 11."""

    async def scenario() -> tuple[int, float]:
        first = spawn(runtime, Worker, 2)
        second = spawn(runtime, Worker, 5)
        number, array = first.call_split("make", 2)
        total = await second.call("total", array)
        return await number, total

    assert asyncio.run(scenario()) == (2, 11.0)


def test_asynchronous_methods_overlap(runtime: Runtime) -> None:
    async def scenario() -> list[int]:
        worker = spawn(runtime, AsyncWorker, 1)
        calls = [worker.call("overlap") for _ in range(3)]
        return list(await asyncio.gather(*calls))

    assert max(asyncio.run(scenario())) == 3


def test_an_error_keeps_its_type_and_its_one_line(runtime: Runtime) -> None:
    async def scenario() -> None:
        worker = spawn(runtime, Worker, 7)
        await worker.call("fail")

    with pytest.raises(UserError) as error:
        asyncio.run(scenario())
    assert plain_message(error.value) == "expected a good number, got 7; choose another"


def test_a_stopped_worker_answers_no_more(runtime: Runtime) -> None:
    async def scenario() -> Any:
        worker = spawn(runtime, Worker, 1)
        await worker.call("make")
        runtime.stop(worker)
        return await worker.call("make")

    with pytest.raises(Exception, match=r"stopped|died|dead"):
        asyncio.run(scenario())


def test_a_worker_tells_its_pulse_while_it_works(runtime: Runtime) -> None:
    async def scenario() -> tuple[Pulse, bool]:
        worker = spawn(runtime, AsyncWorker, 1)
        working = asyncio.ensure_future(worker.call("overlap"))
        await asyncio.sleep(0)
        pulse = await worker.pulse()
        is_first = not working.done()
        await working
        return pulse, is_first

    pulse, is_first = asyncio.run(scenario())
    assert pulse.host == socket.gethostname()
    assert pulse.processes[0].pid > 0
    assert pulse.vitals == Vitals()
    assert is_first


def test_a_buried_worker_is_dead_to_those_that_wait_for_it(runtime: Runtime) -> None:
    async def scenario() -> tuple[str | None, str | None, str | None]:
        worker = spawn(runtime, AsyncWorker, 1)
        other = spawn(runtime, Worker, 2)
        pulse = await worker.pulse()
        working = asyncio.ensure_future(worker.call("overlap"))
        await asyncio.sleep(0.1)
        # As it would be after SIGSTOP: it does not hear that it is stopped.
        if pulse.processes[0].pid != os.getpid():
            os.kill(pulse.processes[0].pid, signal.SIGSTOP)
        await runtime.bury(worker, pulse)
        (error,) = await asyncio.gather(working, return_exceptions=True)
        (others,) = await asyncio.gather(other.call("fail"), return_exceptions=True)
        assert isinstance(error, BaseException)
        assert isinstance(others, UserError)
        return worker.death(error), other.death(error), other.death(others)

    of_worker, of_other, of_alive = asyncio.run(scenario())
    assert of_worker
    assert of_other is None
    assert of_alive is None


def test_a_worker_that_is_gone_leaves_room_for_another(runtime: Runtime) -> None:
    async def scenario() -> Any:
        first = spawn(runtime, Worker, 1)
        await first.call("make")
        await runtime.bury(first, None)
        await asyncio.wait_for(runtime.make_room("worker"), 30)
        second = spawn(runtime, Worker, 2)
        return await second.call("make")

    number, _ = asyncio.run(scenario())
    assert number == 2


def test_metrics_of_any_names_are_shown(runtime: Runtime) -> None:
    """As often as there are steps, also when one has more of them, or figures that are not finite."""
    runtime.show({"step": 1, "rewards/margins": 0.5})
    runtime.show({"step": 2, "rewards/margins": float("nan"), "time/step_s": 3.0})
    runtime.show({})


USERS_JUDGE = """
class Judge:
    def __init__(self, fails=False):
        if fails:
            raise KeyError("weights")

    def judge(self, group):
        return [float(len(completion.text)) for completion in group.completions]
"""


def judging_config(path: Path, *words: str) -> RunConfig:
    """A run with a user's judge, whose file is gone by now: another machine has none."""
    path.write_text(USERS_JUDGE)
    words = (f"--reward.judge.kind={path}:Judge", *words)
    config = load_config(None, ["--mixture.online_fraction=1", *words])
    checked = with_checked_judge(config)
    path.unlink()
    return checked


def test_a_users_judge_travels_as_text(runtime: Runtime, tmp_path: Path) -> None:
    config = judging_config(tmp_path / "users_judge.py")

    async def scenario() -> Any:
        worker = runtime.spawn(
            RewardWorker, config, name="reward", num_cpus=0, num_gpus=0
        )
        return await worker.call("judge", [group(prompt(), "long", "s")])

    (verdict,) = asyncio.run(scenario())
    assert verdict.scores == (4.0, 1.0)


def test_a_users_judge_that_cannot_be_made_is_one_line(
    runtime: Runtime, tmp_path: Path
) -> None:
    config = judging_config(tmp_path / "users_judge.py", "--reward.judge.fails=true")

    async def scenario() -> Any:
        worker = runtime.spawn(
            RewardWorker, config, name="reward", num_cpus=0, num_gpus=0
        )
        await worker.call("start")

    with pytest.raises(Exception, match="users_judge") as error:
        asyncio.run(scenario())
    line = plain_message(error.value)
    assert line.startswith("reward.judge ")
    assert line.endswith("correct it or its settings")
    assert "KeyError: 'weights'" in line
