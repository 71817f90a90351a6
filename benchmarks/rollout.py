"""What our rollout worker costs over bare vLLM: `python -m benchmarks.rollout [--prompts 64 --seeds 0 1 2]`.

Tokens per second through RolloutWorker as a real Ray actor (stepped and async engine) against `vllm.LLM.generate` on
the same prompts with the same engine options, seeds and banned tokens. Every side has a process of its own, pinned to
the same cores; sides take turns, one seed (fresh pictures) per turn, after a warm-up. Bare vLLM is timed inside its
process with its pictures already decoded; ours from the driver, with Ray, reading pictures and every check in it.

The last line is one JSON object; `ratio` is ours (better engine) over bare vLLM, medians over the seeds.
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

from actors.rollout import RolloutWorker
from benchmarks.measured_on import measured_on
from cluster.runtime.ray_runtime import RayRuntime
from common.chat import ChatEncoder
from common.config import Cluster, Mixture, Model, Rollout, RunConfig
from common.data.images import ImageStore
from common.protocols import GenerationRequest
from common.records import Message, Part, Prompt
from common.seeding import derive_seed
from common.shapes.render import render
from common.shapes.scenes import split_scenes

OURS = ("stepped", "async")
"""Our engines."""
WARM_UP = -1
"""Seed of the turn that is not counted."""


def pin(cores: list[int]) -> None:
    """Keep this process and its children on these cores, one compute thread."""
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = "1"


class PinnedWorker(RolloutWorker):
    """The worker under test."""

    def __init__(
        self,
        config: RunConfig,
        cores: list[int],
    ) -> None:
        pin(cores)
        super().__init__(config, 0)


class BareVllm:
    """The peer: `LLM.generate` with nothing around it."""

    def __init__(
        self,
        config: RunConfig,
        cores: list[int],
    ) -> None:
        pin(cores)
        self._config = config

    def start(self) -> dict[str, Any]:
        import torch

        torch.set_num_threads(1)
        from actors.engine.arguments import engine_arguments
        from actors.vllm_api import LLM, VERSION, allow_compile

        model = self._config.model
        self._encoder = ChatEncoder(model.path, model.max_length)
        arguments = engine_arguments(
            model,
            self._config.rollout,
            self._encoder,
            0,
        )
        allow_compile(not self._config.rollout.engine.enforce_eager)
        self._llm = LLM(**arguments)
        return {"engine": "LLM", "vllm": VERSION}

    def run(
        self,
        requests: list[GenerationRequest],
    ) -> tuple[int, float]:
        """Sampled tokens and seconds."""
        from actors.vllm_api import SamplingParams

        encoder = self._encoder
        # The same ban as in our engine, which costs time as well.
        banned = dict.fromkeys(encoder.media_token_ids, -100.0)
        prompts: list[Any] = []
        params = []
        for request in requests:
            # Pictures are decoded before the clock starts, in favour of the peer.
            prompt = {
                "prompt_token_ids": encoder.prompt_ids(request.prompt),
                "multi_modal_data": {"image": encoder.load_images(request.prompt)},
            }
            prompts.append(prompt)
            sampling = SamplingParams(
                n=request.num_completions,
                temperature=request.temperature,
                max_tokens=request.max_tokens,
                seed=request.seed,
                logit_bias=banned,
            )
            params.append(sampling)
        started = time.perf_counter()
        outputs = self._llm.generate(
            prompts,
            params,
            use_tqdm=False,
        )
        seconds = time.perf_counter() - started
        num_tokens = 0
        for output in outputs:
            num_tokens += sum(len(answer.token_ids) for answer in output.outputs)
        return num_tokens, seconds


def make_requests(
    store: ImageStore,
    num_prompts: int,
    seed: int,
    rollout: Rollout,
) -> list[GenerationRequest]:
    """Caption requests on scenes that no other seed has."""
    message = Message("user", (Part("image"), Part("text", "Describe the image.")))
    scenes = split_scenes(
        "train",
        num_prompts,
        seed=derive_seed(seed, "benchmark"),
    )
    requests = []
    for index, scene in enumerate(scenes):
        id = f"{seed}/{index}"
        image = store.add(render(scene))
        request = GenerationRequest(
            id,
            Prompt(id, (message,), (image,)),
            rollout.num_completions,
            rollout.temperature,
            rollout.max_tokens,
            seed=derive_seed(seed, index),
        )
        requests.append(request)
    return requests


async def time_worker(
    worker: Any,
    requests: list[GenerationRequest],
    prompts_per_call: int,
) -> tuple[int, float]:
    """Sampled tokens and seconds; calls of a run's size, all in flight together."""
    started = time.perf_counter()
    calls = []
    for start in range(0, len(requests), prompts_per_call):
        batch = requests[start : start + prompts_per_call]
        calls.append(worker.call("generate", batch))
    results = await asyncio.gather(*calls)
    seconds = time.perf_counter() - started
    num_tokens = 0
    for groups in results:
        for group in groups:
            num_tokens += sum(len(answer.token_ids) for answer in group.completions)
    return num_tokens, seconds


def start_sides(
    base: RunConfig,
    runtime: RayRuntime,
    cores: list[int],
) -> dict[str, Any]:
    """The actors by side."""
    sides: dict[str, Any] = {}
    for name in OURS:
        rollout = base.rollout.model_copy(update={"deterministic": name == "stepped"})
        config = base.model_copy(update={"rollout": rollout})
        sides[name] = runtime.spawn(
            PinnedWorker,
            config,
            cores,
            name=name,
            num_cpus=0.1,
            num_gpus=0,
        )
    # All at once: each is idle while another is measured.
    sides["bare"] = runtime.spawn(
        BareVllm,
        base,
        cores,
        name="bare",
        num_cpus=0.1,
        num_gpus=0,
    )
    return sides


async def measure(
    args: argparse.Namespace,
    runtime: RayRuntime,
    store: ImageStore,
) -> dict[str, Any]:
    """Start all sides and let them take turns."""
    config = RunConfig(
        model=Model(path=args.model),
        mixture=Mixture(online_fraction=1),
        rollout=Rollout(num_completions=4),
    )
    rollout = config.rollout
    sides = start_sides(config, runtime, args.cores)
    started = {}
    for name, side in sides.items():
        started[name] = await side.call("start")
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn, seed in enumerate([WARM_UP, *args.seeds]):
        requests = make_requests(
            store,
            args.prompts,
            seed,
            rollout,
        )
        # Another side goes first in every turn.
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            side = sides[name]
            if name == "bare":
                num_tokens, seconds = await side.call("run", requests)
            else:
                num_tokens, seconds = await time_worker(
                    side, requests, rollout.prompts_per_call
                )
            # Prompt tokens do not count.
            speed = num_tokens / seconds
            print(
                f"seed {seed:2d}  {name:8s} {num_tokens} tokens in {seconds:.2f} s = {speed:.0f} per s"
            )
            if seed != WARM_UP:
                speeds[name].append(speed)
    for name in OURS:
        await sides[name].call("close")
    return summary(args, speeds, started["bare"]["vllm"])


def summary(
    args: argparse.Namespace,
    speeds: dict[str, list[float]],
    vllm: str,
) -> dict[str, Any]:
    """Medians, spread ((max - min) / median) and ratios."""
    medians = {}
    spreads = {}
    for name, values in speeds.items():
        medians[name] = statistics.median(values)
        spread = (max(values) - min(values)) / medians[name]
        spreads[name] = round(spread, 3)
    ratios = {}
    for name in OURS:
        ratio = medians[name] / medians["bare"]
        ratios[name] = round(ratio, 3)
    machine = measured_on(("torch", "transformers", "ray"))
    # Its builds for a CPU are a package of another name.
    machine["versions"]["vllm"] = vllm
    return {
        "benchmark": "rollout",
        "tokens_per_s": {name: round(value) for name, value in medians.items()},
        "spread": spreads,
        "ratios": ratios,
        "ratio": max(ratios.values()),
        "prompts": args.prompts,
        "seeds": args.seeds,
        "cores": args.cores,
        "model": os.path.relpath(args.model),
        **machine,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default=Model().path, help="Hugging Face directory of a LLaVA")
    add("--prompts", type=int, default=64)
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
    )
    all_cores = sorted(os.sched_getaffinity(0))
    add("--cores", type=int, nargs="+", default=all_cores)
    args = parser.parse_args()
    # Actors run in another directory.
    args.model = str(Path(args.model).resolve())
    runtime = RayRuntime(Cluster())
    try:
        with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
            store = ImageStore(Path(folder))
            result = asyncio.run(measure(args, runtime, store))
    finally:
        runtime.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
