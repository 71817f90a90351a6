"""Real vLLM engines, started once and shared by all tests of this folder."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from actors.weights.adapter_push import zero_adapter
from common.checkpoint.layout import empty_model
from common.config import EngineOptions, Full, Lora, Model, Rollout
from common.data.images import ImageStore
from common.protocols import GenerationRequest
from common.records import WeightManifest
from tests.actors.hf_policy import HfPolicy
from tests.tiny_models import make_prompt

Kind: TypeAlias = Literal["stepped", "async"]
AnyCoroutine: TypeAlias = Coroutine[Any, Any, Any]
Run: TypeAlias = Callable[[AnyCoroutine], Any]
KINDS: tuple[Kind, ...] = ("stepped", "async")
MAX_LENGTH = 256


def leave_vllms_process_group() -> None:
    """vLLM's in-process engine leaves its process group behind, and DeepSpeed's tests need one of their own."""
    # Not imported when no engine was started.
    if "vllm" in sys.modules:
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What tells one engine from another."""

    path: Path
    kind: Kind
    tuning: Lora | None = None
    max_pixels: int | None = None


class EnginePool:
    """Starts engines at the first use and gives them their start weights back after each test.

    All of them are closed together: the in-process one that closes first takes the parallel state of the others along.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._engines: dict[EngineSpec, Any] = {}
        self._start_versions: dict[EngineSpec, int] = {}

    def get(
        self,
        path: Path,
        kind: Kind,
        tuning: Lora | None = None,
        max_pixels: int | None = None,
    ) -> Any:
        """The engine on this model directory. With `tuning`, adapters are pushed to it."""
        spec = EngineSpec(path, kind, tuning, max_pixels)
        if spec not in self._engines:
            self._engines[spec] = self._run(_start(spec))
            self._start_versions[spec] = 0
        return self._engines[spec]

    def restore(self) -> None:
        """Push the start weights into every engine that a test has pushed to."""
        for spec, engine in self._engines.items():
            if engine.weight_version == self._start_versions[spec]:
                continue
            # Versions only rise; the weights behind them go back.
            version = engine.weight_version + 1
            manifest, arrays = _start_weights(spec)
            load = engine.load_weights(replace(manifest, version=version), arrays)
            self._run(load)
            self._start_versions[spec] = version

    def close(self) -> None:
        # A process of vLLM takes up to 5 seconds to end, so the engines that have one are closed beside the others.
        with ThreadPoolExecutor() as threads:
            closing = []
            for spec, engine in self._engines.items():
                if spec.kind == "async":
                    closing.append(threads.submit(asyncio.run, engine.close()))
            for spec, engine in self._engines.items():
                if spec.kind == "stepped":
                    self._run(engine.close())
            for future in closing:
                future.result()


def seeded_requests(
    store: ImageStore,
    seeds: range,
    num_completions: int,
    max_tokens: int,
) -> list[GenerationRequest]:
    """One sampling request per seed, each about an image of its own."""
    requests = []
    for seed in seeds:
        request = GenerationRequest(
            f"g{seed}",
            make_prompt(store, seed),
            num_completions,
            temperature=1.0,
            max_tokens=max_tokens,
            seed=seed,
        )
        requests.append(request)
    return requests


async def _start(spec: EngineSpec) -> Any:
    from actors.engine.factory import make_engine

    model = Model(
        path=str(spec.path),
        max_length=MAX_LENGTH,
        max_pixels=spec.max_pixels,
        tuning=spec.tuning or Full(),
    )
    # Small blocks, so that short prompts do use the prefix cache.
    options = EngineOptions(block_size=32, kv_cache_bytes=32 << 20)
    is_stepped = spec.kind == "stepped"
    rollout = Rollout(deterministic=is_stepped, engine=options)
    return make_engine(
        model,
        rollout,
        timeout_s=120,
    )


def _start_weights(spec: EngineSpec) -> tuple[WeightManifest, Any]:
    if spec.tuning is None:
        return HfPolicy(spec.path, MAX_LENGTH).publish(1)
    return zero_adapter(empty_model(spec.path), spec.tuning)
