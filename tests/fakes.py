"""Stand-ins for the real parts, for tests that want speed. Each passes the contract tests of what it stands in for."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.online_bdhs import OnlineBdhsSampler
from common.config import RunConfig
from common.errors import Refused
from common.images import read
from common.protocols import GenerationRequest, Tensors
from common.records import (
    Completion,
    Dropped,
    LoadReport,
    LogprobProbe,
    PreferencePair,
    Prompt,
    RolloutGroup,
    StepResult,
    WeightManifest,
)
from common.seeding import derive_seed

IMAGE_TOKEN, EOS = 4, 2


class LocalHandle:
    """A worker in this process. Calls of one worker run one after another unless they are coroutines, as on Ray."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.stopped = False
        self._lock = asyncio.Lock()

    def call(self, method: str, *args: Any) -> Awaitable[Any]:
        return asyncio.ensure_future(self._run(method, args))

    def call_split(
        self, method: str, num_returns: int, *args: Any
    ) -> Sequence[Awaitable[Any]]:
        whole = asyncio.ensure_future(self._run(method, args))

        async def part(index: int) -> Any:
            return (await whole)[index]

        return [asyncio.ensure_future(part(index)) for index in range(num_returns)]

    async def _run(self, method: str, args: Sequence[Any]) -> Any:
        assert not self.stopped, f"{method} called on a stopped worker"
        read_args = [
            await arg if isinstance(arg, asyncio.Future) else arg for arg in args
        ]
        function = getattr(self.worker, method)
        if inspect.iscoroutinefunction(function):
            return await function(*read_args)
        async with self._lock:
            await asyncio.sleep(0)
            return function(*read_args)


class LocalRuntime:
    """Runtime without Ray: plain objects in this process."""

    def __init__(self) -> None:
        self.handles: dict[str, LocalHandle] = {}

    def spawn(
        self, worker: type, *args: Any, name: str, num_cpus: float, num_gpus: float
    ) -> LocalHandle:
        self.handles[name] = LocalHandle(worker(*args))
        return self.handles[name]

    def stop(self, handle: Any) -> None:
        handle.stopped = True

    def shutdown(self) -> None:
        for handle in self.handles.values():
            handle.stopped = True


class FakeEngine:
    """Engine whose words are drawn from `phrases`; log-probs depend on image content and on the weights."""

    def __init__(
        self,
        phrases: Sequence[str] = ("yes", "no"),
        delay_s: float = 0.0,
        max_length: int = 512,
    ) -> None:
        self._phrases = tuple(phrases)
        self._delay_s = delay_s
        self._max_length = max_length
        self._version = 0
        self._bias = 0.0

    @property
    def weight_version(self) -> int:
        return self._version

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        first = self._version
        results = [self._one(request, first) for request in requests]
        await asyncio.sleep(self._delay_s)
        return [self._stamped(result, self._version) for result in results]

    def _one(self, request: GenerationRequest, version: int) -> RolloutGroup | Dropped:
        try:
            for ref in request.prompt.images:
                read(ref)
            ids = self._prompt_ids(request.prompt)
        except Refused as error:
            return Dropped(request.id, error.reason, str(error))
        completions = []
        for index in range(request.num_completions):
            seed = derive_seed(request.seed or 0, request.id, index, version)
            greedy = request.temperature == 0
            text = self._phrases[0 if greedy else seed % len(self._phrases)]
            words = text.encode()[: request.max_tokens]
            whole = len(words) < request.max_tokens
            tokens = (*(10 + byte for byte in words), *((EOS,) if whole else ()))
            completions.append(
                Completion(
                    tokens, text, version, version, "stop" if whole else "length"
                )
            )
        return RolloutGroup(
            request.id, request.prompt, ids, ids.count(IMAGE_TOKEN), tuple(completions)
        )

    def _prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        slots = sum(
            part.kind == "image"
            for message in prompt.messages
            for part in message.parts
        )
        if slots != len(prompt.images):
            raise Refused(
                "image_count",
                f"prompt {prompt.id}: {len(prompt.images)} images for {slots} parts",
            )
        text = "".join(
            part.text for message in prompt.messages for part in message.parts
        )
        ids = (1, *(IMAGE_TOKEN,) * 4 * slots, *(10 + byte for byte in text.encode()))
        if len(ids) >= self._max_length:
            raise Refused("prompt_too_long", f"prompt {prompt.id}: {len(ids)} tokens")
        return ids

    def _stamped(
        self, result: RolloutGroup | Dropped, version: int
    ) -> RolloutGroup | Dropped:
        if (
            isinstance(result, Dropped)
            or version == result.completions[0].min_weight_version
        ):
            return result
        stamped = tuple(
            Completion(
                c.token_ids, c.text, c.min_weight_version, version, c.finish_reason
            )
            for c in result.completions
        )
        return RolloutGroup(
            result.id,
            result.prompt,
            result.prompt_token_ids,
            result.num_image_tokens,
            stamped,
        )

    async def token_logprobs(
        self, prompt: Prompt, token_ids: Sequence[int]
    ) -> tuple[float, ...]:
        seen = derive_seed(*(ref.sha256 for ref in prompt.images)) % 1000 / 1000
        return tuple(-1.0 - seen - self._bias - token / 1000 for token in token_ids)

    async def score(
        self, answers: Sequence[tuple[Prompt, str]]
    ) -> list[tuple[float, ...] | Dropped]:
        results: list[tuple[float, ...] | Dropped] = []
        for prompt, text in answers:
            try:
                for ref in prompt.images:
                    read(ref)
                self._prompt_ids(prompt)
            except Refused as error:
                results.append(Dropped(prompt.id, error.reason, str(error)))
            else:
                results.append(
                    await self.token_logprobs(
                        prompt, (*(10 + byte for byte in text.encode()), EOS)
                    )
                )
        return results

    async def load_weights(
        self, manifest: WeightManifest, tensors: Tensors
    ) -> LoadReport:
        if manifest.checksum != fake_checksum(tensors):
            raise RuntimeError(
                f"version {manifest.version}: the checksum does not fit the tensors"
            )
        self._version, self._bias = manifest.version, float(tensors["bias"][0])
        error = None
        if manifest.probe is not None:
            found = await self.token_logprobs(
                manifest.probe.prompt, manifest.probe.token_ids
            )
            error = max(
                abs(a - b)
                for a, b in zip(found, manifest.probe.token_logprobs, strict=True)
            )
        return LoadReport(manifest.version, error, 0.0)

    async def close(self) -> None:
        return None


def fake_checksum(tensors: Tensors) -> str:
    return str(
        derive_seed(
            *(f"{name}{np.asarray(tensors[name]).tolist()}" for name in sorted(tensors))
        )
    )


class FakeRolloutWorker:
    """RolloutWorker over a FakeEngine. `phrases` may be set on the class by a test."""

    phrases: Sequence[str] = (
        "There is a red circle at the top.",
        "There is a blue star at the bottom.",
    )
    delay_s = 0.0

    def __init__(
        self, config: RunConfig, index: int, model_path: str | None = None
    ) -> None:
        self.engine = FakeEngine(self.phrases, self.delay_s)
        self._bdhs = OnlineBdhsSampler(config, lambda prompt: 4)
        self.loaded: list[int] = []

    async def start(self) -> dict[str, Any]:
        return {"engine": "fake", "weight_version": self.engine.weight_version}

    async def generate(
        self, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        return await self.engine.generate(requests)

    async def bdhs_pairs(
        self, groups: list[tuple[str, Prompt]]
    ) -> list[PreferencePair | Dropped]:
        return await self._bdhs.pairs(groups, self.engine.generate)

    async def score(
        self, answers: list[tuple[Prompt, str]]
    ) -> list[tuple[float, ...] | Dropped]:
        return await self.engine.score(answers)

    async def load(self, manifest: WeightManifest, tensors: Tensors) -> LoadReport:
        self.loaded.append(manifest.version)
        return await self.engine.load_weights(manifest, tensors)

    async def close(self) -> None:
        await self.engine.close()


class FakeLearner:
    """Counts what it is given; its one weight is the number of pairs it ever trained on."""

    step_s = 0.0

    def __init__(self, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        self.weight = 0
        self.trained: list[tuple[int, tuple[str, ...]]] = []

    def rendezvous(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    def start(self, master_address: str, master_port: int) -> dict[str, Any]:
        return {"device": "fake", "fallbacks": {"share_prompt": "a fake has no prompt"}}

    def set_probe(self, prompt: Prompt, token_ids: tuple[int, ...]) -> None:
        self._probe = (prompt, token_ids)

    async def step(
        self, step: int, pairs: list[PreferencePair]
    ) -> tuple[StepResult, list[Dropped]]:
        await asyncio.sleep(self.step_s)
        self.weight += len(pairs)
        ids = tuple(pair.id for pair in pairs)
        self.trained.append((step, ids))
        return StepResult(
            step, {"loss": 1.0 / step, "rewards/margins": float(step)}, ids
        ), []

    def publish(self, version: int) -> tuple[WeightManifest, Mapping[str, Any]]:
        tensors = {"bias": np.array([float(self.weight)], dtype=np.float32)}
        prompt, token_ids = self._probe
        seen = derive_seed(*(ref.sha256 for ref in prompt.images)) % 1000 / 1000
        logprobs = tuple(
            -1.0 - seen - self.weight - token / 1000 for token in token_ids
        )
        probe = LogprobProbe(prompt, token_ids, logprobs)
        return WeightManifest(
            version, fake_checksum(tensors), 1, 4, float(self.weight), probe
        ), tensors

    def save(self, directory: str) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / "weight.json").write_text(json.dumps(self.weight))

    def load(self, directory: str) -> None:
        self.weight = json.loads((Path(directory) / "weight.json").read_text())

    def export(self, directory: str) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / "config.json").write_text(
            json.dumps({"weight": self.weight, "time": time.time()})
        )
