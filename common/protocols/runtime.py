"""Starts workers, and calls them: Ray or this process, in cluster/runtime/."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Process:
    """A process on a worker's machine.

    Attributes:
        started: when, in clock ticks since the machine's start: a number that another process takes later tells it.
    """

    pid: int
    name: str
    started: int


@dataclass(frozen=True, slots=True)
class Vitals:
    """How a worker's engine is. A worker without one has no method `vitals`.

    Attributes:
        fault: why it cannot go on; "" when it can.
        silent_s: how long it has not answered.
    """

    fault: str = ""
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a worker tells of itself at any time, whatever it works on.

    Attributes:
        host: name of its machine.
        log: its output's file on that machine; "" where it has none.
        processes: its process first, then those that it has started.
    """

    host: str
    log: str
    processes: tuple[Process, ...]
    vitals: Vitals = Vitals()


class Handle(Protocol):
    """A worker, perhaps in another process or on another machine.

    Calls return references to results. A reference may be an argument of another call: its value then goes to that
    worker directly, never through the caller.
    """

    def call(self, method: str, *args: Any) -> Awaitable[Any]:
        """Start the method and return at once, with a reference that can be awaited or passed on."""
        ...

    def call_split(
        self,
        method: str,
        num_returns: int,
        *args: Any,
    ) -> Sequence[Awaitable[Any]]:
        """The same for a method that returns a tuple: one reference per element."""
        ...

    def pulse(self) -> Awaitable[Pulse]:
        """What it says of itself, beside whatever it works on."""
        ...

    def death(self, error: BaseException) -> str | None:
        """Why this worker is dead, when the error of a call to it says that it is; None otherwise."""
        ...


@dataclass(frozen=True, slots=True)
class Sight:
    """What an actor sees from where it is.

    Attributes:
        host: name of its machine.
        folder: where it looks for relative paths.
        gpus: numbers of the GPUs that it may use, as CUDA reads them.
        nonce: content of the run's nonce file; None where it cannot be read.
        missing: of the paths asked about.
    """

    host: str
    folder: str
    gpus: str
    nonce: str | None
    missing: tuple[str, ...]


class Runtime(Protocol):
    """Starts plain classes as workers: as Ray actors, or in this process for tests."""

    def spawn(
        self,
        worker: type,
        *args: Any,
        name: str,
        num_cpus: float,
        num_gpus: float,
    ) -> Handle: ...

    async def make_room(self, name: str) -> None:
        """Wait until there is a place for another worker of this name: its machine may have left.

        Raises:
            UserError: there was none in time.
        """
        ...

    def survey_nodes(self, nonce_file: str) -> Mapping[str, Awaitable[Sight]]:
        """What every node of the run sees of this file, by the name of an actor that will be there."""
        ...

    def show(self, values: Mapping[str, float]) -> None:
        """Let whoever watches the cluster see metrics of the run."""
        ...

    def stop(self, handle: Handle) -> None: ...

    async def bury(self, handle: Handle, pulse: Pulse | None) -> None:
        """Stop a worker that may be dead or may not answer, and wait until its processes are gone.

        `pulse` is the last one; a machine that is gone as well is not waited for.
        """
        ...

    def shutdown(self) -> None: ...
