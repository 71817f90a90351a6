"""How fast weights get from the learner to the engines: `python -m benchmarks.weight_push [--sizes 0.1 1]`.

Seconds from the call of a push until all receivers have the checked weights where an engine loads them from, against
the plainest way to move the same bytes in the same run, taken in turns with the pushes:

    object_store, adapter   a copy into fresh memory, by one thread
    broadcast               torch.distributed's broadcast over gloo to as many receivers, of one matrix after another,
                            whether the push goes through shared memory (as on one machine) or over gloo (--backend)

Ends are actors without a model (`benchmarks.push_sides`), so the figures are those of the way alone; an engine's load
comes on top. `benchmarks.push_engines` has real engines. Figures are medians; pushes before the first counted one fill
Ray's store, whose pages are new then (`first_s`). The last line is one JSON object; `--plot` draws it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.measured_on import measured_on
from benchmarks.push_plot import draw
from benchmarks.push_sides import (
    ADAPTER,
    LIMIT_S,
    WHOLE,
    Stages,
    StoreReceiver,
    StoreSender,
    Streamer,
)
from cluster.runtime.ray_runtime import RayRuntime
from common.config import Cluster, Lora
from common.config.loop import Weights

GB = 1e9
WARM_UP = 4
GOALS = {"object_store": 0.5, "adapter": 0.5, "broadcast": 0.7}
"""Least speed, as a share of the plain way's."""
MAX_GROWTH = 1.3
"""Of the time of a push, from one engine to the most. On one machine every receiver takes cores from the others, for
the plain broadcast as well: its own growth stands beside."""


class Side(Protocol):
    """A transport with its two ends."""

    async def start(self) -> None:
        """Make the ends."""
        ...

    async def raw(self, num_engines: int) -> float:
        """Seconds of the plain way."""
        ...

    async def push(self, num_engines: int) -> Stages:
        """Push once; seconds by stage, of the receiver that was last."""
        ...

    def stop(self) -> None:
        """Free the memory of both ends."""
        ...


class Actors:
    """A sender and its receivers on Ray."""

    def __init__(self, runtime: RayRuntime) -> None:
        self._runtime = runtime
        self._handles: list[Any] = []

    def spawn(self, worker: type, *args: Any) -> Any:
        """Start one."""
        handle = self._runtime.spawn(
            worker,
            *args,
            name=worker.__name__,
            num_cpus=0.1,
            num_gpus=0,
        )
        self._handles.append(handle)
        return handle

    def stop(self) -> None:
        """End all."""
        for handle in self._handles:
            self._runtime.stop(handle)
        self._handles.clear()


class StoreSide:
    """Through Ray's store and one copy in shared memory: `object_store`, and with a tuning `adapter`."""

    def __init__(
        self,
        runtime: RayRuntime,
        num_bytes: int,
        max_engines: int,
        tuning: Lora | None,
    ) -> None:
        self._actors = Actors(runtime)
        self._num_bytes = num_bytes
        self._max_engines = max_engines
        self._tuning = None if tuning is None else tuning.model_dump()
        self._receivers: list[Any] = []

    async def start(self) -> None:
        shape = WHOLE if self._tuning is None else ADAPTER
        self._sender = self._actors.spawn(StoreSender, self._num_bytes, shape)
        for _ in range(self._max_engines):
            receiver = self._actors.spawn(StoreReceiver, self._tuning)
            self._receivers.append(receiver)
        await asyncio.gather(*[end.call("ready") for end in self._receivers])

    async def raw(self, num_engines: int) -> float:
        seconds: float = await self._sender.call("raw")
        return seconds

    async def push(self, num_engines: int) -> Stages:
        manifest, tensors = self._sender.call_split("publish", 2)
        loads = []
        for receiver in self._receivers[:num_engines]:
            loads.append(receiver.call("load", manifest, tensors))
        return slowest(await asyncio.gather(*loads))

    def stop(self) -> None:
        self._actors.stop()


class BroadcastSide:
    """In buckets, by `shm` or `gloo`."""

    def __init__(
        self,
        runtime: RayRuntime,
        num_bytes: int,
        max_engines: int,
        bucket_bytes: int,
        backend: str,
    ) -> None:
        self._backend = backend
        self._actors = Actors(runtime)
        self._num_bytes = num_bytes
        self._bucket_bytes = bucket_bytes
        self._max_engines = max_engines
        self._members: list[Any] = []
        self._numbers = itertools.count()

    async def start(self) -> None:
        for rank in range(1 + self._max_engines):
            member = self._actors.spawn(
                Streamer, self._num_bytes, self._bucket_bytes, rank
            )
            self._members.append(member)
        self._place = await self._members[0].call("place")
        await asyncio.gather(*[member.call("ready") for member in self._members])

    async def raw(self, num_engines: int) -> float:
        seconds: list[float] = await self._call("raw", num_engines, "gloo")
        return max(seconds)

    async def push(self, num_engines: int) -> Stages:
        return slowest(await self._call("push", num_engines, self._backend))

    async def _call(self, method: str, num_engines: int, backend: str) -> list[Any]:
        from common.push.meeting import Meeting

        members = self._members[: 1 + num_engines]
        address, port = self._place
        key = f"push/{next(self._numbers)}"
        meeting = Meeting(address, port, key, backend, len(members), LIMIT_S)
        return await asyncio.gather(
            *[member.call(method, meeting) for member in members]
        )

    def stop(self) -> None:
        self._actors.stop()


def slowest(stages: Sequence[Stages]) -> Stages:
    """Those of the end that took longest."""
    return max(stages, key=lambda one: sum(one.values()))


def side_of(
    transport: str, args: argparse.Namespace, runtime: RayRuntime, num_bytes: int
) -> Side:
    """The ends of a transport."""
    max_engines = max(args.engines)
    if transport == "broadcast":
        bucket_bytes = args.bucket_mib << 20
        return BroadcastSide(
            runtime, num_bytes, max_engines, bucket_bytes, args.backend
        )
    tuning = Lora() if transport == "adapter" else None
    return StoreSide(runtime, num_bytes, max_engines, tuning)


async def measure(args: argparse.Namespace, runtime: RayRuntime) -> dict[str, Any]:
    """Every transport, size and number of engines."""
    rows = []
    for transport, size in itertools.product(args.transports, args.sizes):
        num_bytes = round(size * GB)
        side = side_of(transport, args, runtime, num_bytes)
        try:
            await side.start()
            for num_engines in args.engines:
                row = await measure_row(side, num_bytes, num_engines, args.repeats)
                row = {"transport": transport, "gb": size, **row}
                print(json.dumps(row), flush=True)
                rows.append(row)
        finally:
            side.stop()
    return summary(args, rows)


async def measure_row(
    side: Side, num_bytes: int, num_engines: int, repeats: int
) -> dict[str, Any]:
    """Medians of pushes and of the plain way, in turns."""
    raws: list[float] = []
    pushes: list[float] = []
    stages: list[Stages] = []
    for _ in range(WARM_UP + repeats):
        raws.append(await side.raw(num_engines))
        begun = time.perf_counter()
        stages.append(await side.push(num_engines))
        pushes.append(time.perf_counter() - begun)
    push_s = statistics.median(pushes[WARM_UP:])
    raw_s = statistics.median(raws[WARM_UP:])
    medians = {}
    for name in stages[0]:
        values = [one[name] for one in stages[WARM_UP:]]
        medians[name] = round(statistics.median(values), 4)
    return {
        "engines": num_engines,
        "push_s": round(push_s, 4),
        "first_s": round(pushes[0], 4),
        "raw_s": round(raw_s, 4),
        "gb_per_s": round(num_bytes / push_s / GB, 3),
        "raw_gb_per_s": round(num_bytes / raw_s / GB, 3),
        "ratio": round(raw_s / push_s, 3),
        "spread": round((max(pushes[WARM_UP:]) - min(pushes[WARM_UP:])) / push_s, 2),
        "stages": medians,
    }


def summary(args: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows, and per transport how it stands against the goals."""
    against_goals = {}
    for transport in args.transports:
        of_transport = [row for row in rows if row["transport"] == transport]
        ratios = [row["ratio"] for row in of_transport]
        against_goals[transport] = {
            "least_ratio": min(ratios),
            "median_ratio": round(statistics.median(ratios), 3),
            "goal": GOALS[transport],
            "most_growth": _most_growth(of_transport, "push_s"),
            "most_growth_raw": _most_growth(of_transport, "raw_s"),
            "growth_goal": MAX_GROWTH,
        }
    return {
        "benchmark": "weight_push",
        "transports": against_goals,
        "rows": rows,
        "repeats": args.repeats,
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(load, 1) for load in os.getloadavg()],
        **measured_on(["torch", "ray"]),
    }


def _most_growth(rows: Sequence[dict[str, Any]], field: str) -> float:
    """Of the seconds from the fewest engines to the most, for the size for which they grow most."""
    growths: list[float] = []
    for size in {row["gb"] for row in rows}:
        seconds = {row["engines"]: row[field] for row in rows if row["gb"] == size}
        growths.append(seconds[max(seconds)] / seconds[min(seconds)])
    return round(max(growths), 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--transports", nargs="+", choices=list(GOALS), default=list(GOALS))
    add("--sizes", nargs="+", type=float, default=[0.1, 0.5, 1.0], help="GB")
    add("--engines", nargs="+", type=int, default=[1, 2, 4])
    add("--repeats", type=int, default=5)
    bucket_mib = Weights().bucket_mib
    add("--bucket-mib", type=int, default=bucket_mib, help="of broadcast")
    add("--backend", choices=["shm", "gloo"], default="shm", help="of broadcast")
    add("--plot", type=Path, help="an SVG file")
    args = parser.parse_args()
    runtime = RayRuntime(Cluster(), push_bytes=max(args.sizes) * GB)
    try:
        result = asyncio.run(measure(args, runtime))
    finally:
        runtime.shutdown()
    if args.plot is not None:
        draw(result["rows"], args.plot)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
