"""A runtime without Ray, whose workers can be killed and can hang."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from benchmarks.local_calls import LocalCalls, values_of
from cluster.runtime.seated import look, seated
from common.protocols import Pulse, Sight


class Died(Exception):
    """What a call to a dead worker raises, whose result may be an argument of another call."""

    def __init__(self, handle: LocalHandle) -> None:
        super().__init__("the fake has died")
        self.handle = handle


class LocalHandle(LocalCalls):
    """A worker in this process. Calls of one worker run one after another unless they are coroutines, as on Ray.

    `kill` and `hang` do to it what signals do to an actor's process.
    """

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.stopped = False
        self._lock = asyncio.Lock()
        self._dead = False
        self._calls: set[asyncio.Task[Any]] = set()
        self._hangs = False

    def kill(self) -> None:
        """End it: calls that run, and later ones, raise Died."""
        self._dead = True
        for call in self._calls:
            call.cancel()

    @property
    def is_dead(self) -> bool:
        return self._dead

    def hang(self) -> None:
        """Answer nothing any more."""
        self._hangs = True

    def death(self, error: BaseException) -> str | None:
        if isinstance(error, Died) and error.handle is self:
            return "the fake has died"
        return None

    async def _run(self, method: str, args: Sequence[Any]) -> Any:
        assert not self.stopped, f"{method} called on a stopped worker"
        values = await values_of(args)
        if self._dead:
            raise Died(self)
        call = asyncio.ensure_future(self._answer(method, values))
        self._calls.add(call)
        try:
            return await call
        except asyncio.CancelledError:
            if self._dead:
                raise Died(self) from None
            call.cancel()
            raise
        finally:
            self._calls.discard(call)

    async def _answer(self, method: str, values: Sequence[Any]) -> Any:
        if self._hangs:
            await asyncio.Event().wait()
        function = getattr(self.worker, method)
        if inspect.iscoroutinefunction(function):
            return await function(*values)
        async with self._lock:
            await asyncio.sleep(0)
            return function(*values)


class LocalRuntime:
    """Runtime without Ray: plain objects in this process."""

    def __init__(self) -> None:
        self.handles: dict[str, LocalHandle] = {}
        self.shown: dict[str, float] = {}

    def spawn(
        self, worker: type, *args: Any, name: str, num_cpus: float, num_gpus: float
    ) -> LocalHandle:
        self.handles[name] = LocalHandle(seated(worker, ".")(*args))
        return self.handles[name]

    def survey_nodes(self, nonce_file: str) -> dict[str, Awaitable[Sight]]:
        async def sight() -> Sight:
            return look(nonce_file, ())

        return {"rollout/0": sight()}

    def show(self, values: Mapping[str, float]) -> None:
        self.shown = dict(values)

    def stop(self, handle: Any) -> None:
        handle.stopped = True

    async def make_room(self, name: str) -> None:
        return None

    async def bury(self, handle: Any, pulse: Pulse | None) -> None:
        handle.kill()

    def shutdown(self) -> None:
        for handle in self.handles.values():
            handle.stopped = True
