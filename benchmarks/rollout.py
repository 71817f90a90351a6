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
from importlib import metadata
from pathlib import Path
from typing import Any

from actors.rollout import RolloutWorker
from cluster.ray_runtime import RayRuntime
from common.chat import ChatEncoder
from common.config import Cluster, Mixture, Model, Rollout, RunConfig
from common.images import ImageStore
from common.protocols import GenerationRequest
from common.records import Message, Part, Prompt
from common.seeding import derive_seed
from common.shapes.render import render
from common.shapes.scenes import split_scenes


def pin(cores: list[int]) -> None:
    """Keep this process and its children on these cores, one compute thread."""
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = "1"


class PinnedWorker(RolloutWorker):
    """The worker under test."""

    def __init__(self, config: RunConfig, cores: list[int]) -> None:
        pin(cores)
        super().__init__(config, 0)


class BareVllm:
    """The peer: `LLM.generate`, nothing around it."""

    def __init__(self, config: RunConfig, cores: list[int]) -> None:
        pin(cores)
        self._config = config

    def start(self) -> dict[str, Any]:
        import torch

        torch.set_num_threads(1)
        from actors.engine_arguments import engine_arguments
        from actors.vllm_api import LLM, VERSION

        model = self._config.model
        self._encoder = ChatEncoder(model.path, model.max_length)
        self._llm = LLM(
            **engine_arguments(model, self._config.rollout, self._encoder, 0)
        )
        return {"engine": "LLM", "vllm": VERSION}

    def run(self, requests: list[GenerationRequest]) -> tuple[int, float]:
        """Sampled tokens and seconds."""
        from actors.vllm_api import SamplingParams

        encoder = self._encoder
        prompts: list[Any] = [
            {
                "prompt": encoder.prompt_text(r.prompt),
                "multi_modal_data": {"image": encoder.load_images(r.prompt)},
            }
            for r in requests
        ]
        ban = dict.fromkeys(encoder.media_token_ids, -100.0)
        params = [
            SamplingParams(
                n=r.num_completions,
                temperature=r.temperature,
                max_tokens=r.max_tokens,
                seed=r.seed,
                logit_bias=ban,
            )
            for r in requests
        ]
        started = time.perf_counter()
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        return sum(
            len(one.token_ids) for output in outputs for one in output.outputs
        ), seconds


def make_requests(
    store: ImageStore, num_prompts: int, seed: int, rollout: Rollout
) -> list[GenerationRequest]:
    """Caption requests on scenes of their own for every seed."""
    message = Message("user", (Part("image"), Part("text", "Describe the image.")))
    scenes = split_scenes("train", num_prompts, seed=derive_seed(seed, "benchmark"))
    return [
        GenerationRequest(
            f"{seed}/{index}",
            Prompt(f"{seed}/{index}", (message,), (store.add(render(scene)),)),
            rollout.num_completions,
            rollout.temperature,
            rollout.max_tokens,
            seed=derive_seed(seed, index),
        )
        for index, scene in enumerate(scenes)
    ]


async def time_worker(
    worker: Any, requests: list[GenerationRequest], prompts_per_call: int
) -> tuple[int, float]:
    """Sampled tokens and seconds; calls as in a run, all in flight together."""
    started = time.perf_counter()
    calls = [
        requests[at : at + prompts_per_call]
        for at in range(0, len(requests), prompts_per_call)
    ]
    results = await asyncio.gather(*(worker.call("generate", call) for call in calls))
    seconds = time.perf_counter() - started
    return sum(
        len(one.token_ids)
        for groups in results
        for group in groups
        for one in group.completions
    ), seconds


async def measure(
    args: argparse.Namespace, runtime: RayRuntime, store: ImageStore
) -> dict[str, Any]:
    base = RunConfig(
        model=Model(path=args.model),
        mixture=Mixture(online_fraction=1),
        rollout=Rollout(num_completions=4),
    )
    configs = {
        name: base.model_copy(
            update={
                "rollout": base.rollout.model_copy(
                    update={"deterministic": name == "stepped"}
                )
            }
        )
        for name in ("stepped", "async")
    }
    sides: dict[str, Any] = {
        name: runtime.spawn(
            PinnedWorker, config, args.cores, name=name, num_cpus=0.1, num_gpus=0
        )
        for name, config in configs.items()
    }
    sides["bare"] = runtime.spawn(
        BareVllm, base, args.cores, name="bare", num_cpus=0.1, num_gpus=0
    )
    started = {name: await side.call("start") for name, side in sides.items()}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for turn, seed in enumerate([-1, *args.seeds]):  # -1 warms up
        requests = make_requests(store, args.prompts, seed, base.rollout)
        order = list(sides)[turn % 3 :] + list(sides)[: turn % 3]
        for name in order:
            if name == "bare":
                num_tokens, seconds = await sides[name].call("run", requests)
            else:
                num_tokens, seconds = await time_worker(
                    sides[name], requests, base.rollout.prompts_per_call
                )
            print(
                f"seed {seed:2d}  {name:8s} {num_tokens} tokens in {seconds:.2f} s = {num_tokens / seconds:.0f} per s"
            )
            if seed >= 0:
                speeds[name].append(num_tokens / seconds)
    for name in configs:
        await sides[name].call("close")
    return summary(args, speeds, started["bare"]["vllm"])


def summary(
    args: argparse.Namespace, speeds: dict[str, list[float]], vllm: str
) -> dict[str, Any]:
    """Medians, spread ((max - min) / median) and ratios."""
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = {
        name: round(medians[name] / medians["bare"], 3) for name in ("stepped", "async")
    }
    return {
        "benchmark": "rollout",
        "tokens_per_s": {name: round(value) for name, value in medians.items()},
        "spread": {
            name: round((max(v) - min(v)) / medians[name], 3)
            for name, v in speeds.items()
        },
        "ratios": ratios,
        "ratio": max(ratios.values()),
        "prompts": args.prompts,
        "seeds": args.seeds,
        "cores": args.cores,
        "model": os.path.relpath(args.model),
        "versions": {
            "vllm": vllm,
            **{
                name: metadata.version(name)
                for name in ("torch", "transformers", "ray")
            },
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=Model().path, help="Hugging Face directory of a LLaVA"
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--cores", type=int, nargs="+", default=sorted(os.sched_getaffinity(0))
    )
    args = parser.parse_args()
    args.model = str(Path(args.model).resolve())
    runtime = RayRuntime(Cluster())
    try:
        with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
            result = asyncio.run(measure(args, runtime, ImageStore(Path(folder))))
    finally:
        runtime.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
