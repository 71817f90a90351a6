"""How fast 7 billion parameters get into an engine on the learner's GPU: `python -m benchmarks.push_gpu`.

LLaVA-1.5's 7B with random weights in bfloat16 and adapters of rank 128; a learner rank and a vLLM engine, both on one
GPU, as a run starts them. Every transport brings the learner's weights into the engine, which samples meanwhile:

    ipc            merged weights in buckets, opened where they lie
    adapter        the adapters alone, by Ray's store
    broadcast      merged weights in buckets over gloo, since NCCL takes a GPU once
    object_store   merged weights, gathered on the host, by Ray's store

`copy_gb_s` is what a plain copy on the GPU reaches in this run. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measured_on import measured_on
from benchmarks.push_engines import LIMIT_S, Run, requests
from benchmarks.step_model import SIZES, build
from common.config import Cluster, RunConfig
from common.paths import replace_file

TRANSPORTS = ("ipc", "adapter", "broadcast", "object_store")
COPIED_BYTES = 4 << 30
PUSH_BYTES = 16e9
"""Room in Ray's store for whole weights."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and print the figures."""
    options = parse(words)
    from cluster.runtime.ray_runtime import RayRuntime

    runtime = RayRuntime(Cluster(), push_bytes=PUSH_BYTES)
    try:
        with tempfile.TemporaryDirectory(dir=options.scratch) as name:
            rows = asyncio.run(measure(options, runtime, Path(name)))
    finally:
        runtime.shutdown()
    result = {
        "benchmark": "push_gpu",
        "size": options.size,
        "rows": rows,
        "copy_gb_s": round(copy_rate() / 1e9, 1),
        **measured_on(["vllm", "torch", "ray"]),
    }
    if options.out is not None:
        replace_file(options.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.push_gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="7b")
    parser.add_argument(
        "--transports", nargs="+", choices=TRANSPORTS, default=TRANSPORTS
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="folder with room for 20 GB")
    parser.add_argument("--out", type=Path, help="file of the figures")
    return parser.parse_args(words)


def config_of(model: Path, folder: Path, transport: str) -> RunConfig:
    """A run whose rank and engine share a GPU."""
    return RunConfig.model_validate(
        {
            "run": {"dir": str(folder / "run")},
            "model": {
                "path": str(model),
                "dtype": "bfloat16",
                "max_length": 1024,
                "tuning": {"kind": "lora", "r": 128, "alpha": 256},
            },
            "mixture": {"online_fraction": 1.0},
            "rollout": {
                "num_gpus": 1,
                "engine": {"kv_cache_bytes": 4 << 30, "gpu_memory_utilization": 0.4},
            },
            "learner": {"num_gpus": 1, "global_batch": 2},
            "cluster": {"placement": "colocated"},
            "loop": {"call_timeout_s": LIMIT_S},
            "weights": {"transport": transport},
        }
    )


async def measure(
    options: argparse.Namespace, runtime: Any, folder: Path
) -> list[dict[str, Any]]:
    """A row for each transport."""
    from common.data.images import ImageStore

    build(SIZES[options.size], folder / "model", "bfloat16", "cuda")
    asked = requests(ImageStore(folder / "images"), 4)
    rows = []
    for transport in options.transports:
        begun = time.perf_counter()
        run = Run(runtime, config_of(folder / "model", folder, transport), 1)
        try:
            await run.workers.start()
            start_s = round(time.perf_counter() - begun, 1)
            row = await run.pushes(1, options.repeats, asked)
        finally:
            await run.close()
        rate = row["mb"] / 1e3 / row["push_s"]
        rows.append(
            {"transport": transport, **row, "gb_s": round(rate, 2), "start_s": start_s}
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def copy_rate() -> float:
    """Bytes a second of a copy from one place of the GPU to another."""
    import torch

    source = torch.randint(0, 255, (COPIED_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    for _ in range(10):
        target.copy_(source)
    ended.record()
    ended.synchronize()
    milliseconds: float = begun.elapsed_time(ended)
    return 10 * COPIED_BYTES / (milliseconds / 1e3)


if __name__ == "__main__":
    raise SystemExit(main())
