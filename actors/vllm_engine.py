"""What both vLLM engines share: requests in, groups out, weights swapped and proven.

    generate        features of hidden-token prompts, a batch at a time, while the engine runs those before it
                    build -> render (vLLM expands image tokens) -> check -> submit -> await -> RolloutGroup
    load_weights    check arrays -> shared memory -> swap between two steps, caches dropped -> version echo -> probe

Rendering and submitting exclude a swap, sampling does not: what runs goes on under the new weights, its prefix
recomputed. Otherwise vLLM's two multimodal caches (here and in the engine) could be emptied apart from each other.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from typing import Any

import torch

from actors.adapter_push import (
    adapter_request,
    check_adapter,
    pushed_adapter,
    shared_adapter,
    zero_adapter,
)
from actors.engine_arguments import engine_arguments
from actors.requests import (
    PromptBuilder,
    sampling_params,
    scoring_params,
    to_group,
    token_logprobs,
)
from actors.shared_memory import sweep
from actors.vision_features import VisionFeatures, by_images
from actors.vllm_api import LoRARequest, RequestOutput, SamplingParams
from actors.weight_sender import check_tensors, shared_file
from common.chat import ChatEncoder
from common.config import Model, Rollout
from common.errors import Refused
from common.protocols import GenerationRequest, Tensors
from common.records import Dropped, LoadReport, Prompt, RolloutGroup, WeightManifest
from common.weights import checkpoint_shapes


class VllmEngine(ABC):
    """Implements common.protocols.Engine over one vLLM engine; subclasses say where it runs."""

    def __init__(
        self,
        model: Model,
        rollout: Rollout,
        *,
        seed: int = 0,
        probe_tolerance: float = 1e-3,
        timeout_s: float = 600,
    ) -> None:
        self.encoder = encoder = ChatEncoder(model.path, model.max_length)
        self._model = model
        self._probe_tolerance = probe_tolerance
        self._timeout_s = timeout_s
        self._features = VisionFeatures(encoder, getattr(torch, model.dtype))
        self._builder = PromptBuilder(encoder, self._features)
        self._shapes = checkpoint_shapes(model.path)
        self._swap_lock = asyncio.Lock()
        self._ids = (str(number) for number in itertools.count())
        self._version = 0
        self._adapter = pushed_adapter(model)
        self._lora_request: LoRARequest | None = None
        sweep()
        self._launch(engine_arguments(model, rollout, encoder, seed))

    @property
    def weight_version(self) -> int:
        return self._version

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        """One result per request, in order."""
        started: list[tuple[str, Awaitable[RequestOutput]] | Dropped] = []
        try:
            for batch in by_images(requests):
                async with self._swap_lock:
                    self._features.prepare(
                        request.prompt
                        for request in batch
                        if request.visible_image_tokens
                    )
                started.extend([await self._start(request) for request in batch])
            return [
                entry
                if isinstance(entry, Dropped)
                else to_group(request, await entry[1], self.encoder)
                for request, entry in zip(requests, started, strict=True)
            ]
        except BaseException:
            await self._abort(
                [entry[0] for entry in started if not isinstance(entry, Dropped)]
            )
            raise

    async def token_logprobs(
        self, prompt: Prompt, token_ids: Sequence[int]
    ) -> tuple[float, ...]:
        """Log-prob (nats) of each token of a given response. Raises Refused when it cannot be run."""
        async with self._swap_lock:
            return await self._score(prompt, token_ids)

    async def score(
        self, answers: Sequence[tuple[Prompt, str]]
    ) -> list[tuple[float, ...] | Dropped]:
        """Token log-probs (nats) of whole answers under one set of weights, one result per answer, in order."""
        encode = self.encoder.encode_response
        started: list[tuple[str, Awaitable[RequestOutput]] | Dropped] = []
        async with self._swap_lock:
            try:
                started.extend(
                    [
                        await self._start_scoring(prompt, encode(text))
                        for prompt, text in answers
                    ]
                )
                return [
                    entry
                    if isinstance(entry, Dropped)
                    else token_logprobs(await entry[1], encode(text))
                    for (_, text), entry in zip(answers, started, strict=True)
                ]
            except BaseException:
                await self._abort(
                    [entry[0] for entry in started if not isinstance(entry, Dropped)]
                )
                raise

    async def load_weights(
        self, manifest: WeightManifest, tensors: Tensors
    ) -> LoadReport:
        """Swap the weights and prove them.

        Raises:
            UserError: the tensors are not what the manifest and the model say; the old weights stay.
            RuntimeError: the engine echoes another version, disagrees with the probe, or takes too long.
        """
        started = time.perf_counter()
        tuning = self._adapter
        if tuning is not None:
            await asyncio.to_thread(
                check_adapter, manifest, tensors, self._shapes, tuning
            )
        else:
            frozen = self._model.freeze_vision
            await asyncio.to_thread(
                check_tensors, manifest, tensors, self._shapes, frozen
            )
        try:
            async with asyncio.timeout(self._timeout_s), self._swap_lock:
                with (
                    shared_adapter(tensors, tuning)
                    if tuning
                    else shared_file(tensors) as path
                ):
                    echo = await self._swap(str(path), str(manifest.version))
                if echo != str(manifest.version):
                    raise RuntimeError(
                        f"weights {manifest.version}: expected the engine to echo this version, got {echo}; restart it"
                    )
                self._version = manifest.version
                if tuning is None:
                    self._features.load(tensors)
                error = await self._prove(manifest)
        except TimeoutError as late:
            raise RuntimeError(
                f"weights {manifest.version}: expected a load within {self._timeout_s:g} s, got none; see the engine's "
                "log or raise loop.call_timeout_s"
            ) from late
        return LoadReport(manifest.version, error, time.perf_counter() - started)

    async def _prove(self, manifest: WeightManifest) -> float | None:
        if (probe := manifest.probe) is None:
            return None
        found = await self._score(probe.prompt, probe.token_ids)
        error = max(
            abs(ours - theirs)
            for ours, theirs in zip(found, probe.token_logprobs, strict=True)
        )
        if not error <= self._probe_tolerance:
            raise RuntimeError(
                f"weights {manifest.version}: expected the learner's log-probs within loop.probe_tolerance = "
                f"{self._probe_tolerance:g}, got a difference of {error:.3g}; engine and learner run different weights"
            )
        return error

    async def _start(
        self, request: GenerationRequest
    ) -> tuple[str, Awaitable[RequestOutput]] | Dropped:
        """Hand a request to the engine, or say why not."""
        encoder = self.encoder
        suffix = encoder.encode_response(request.prefix)[:-1] if request.prefix else ()
        try:
            async with self._swap_lock:
                built = self._builder.build(
                    request.prompt, suffix, request.visible_image_tokens, request.noise
                )
                rendered = await self._render(built.payload)
                num_tokens = len(rendered["prompt_token_ids"])
                self._builder.check(built, rendered["prompt_token_ids"])
                params = sampling_params(
                    request, encoder.max_length - num_tokens, encoder.media_token_ids
                )
                request_id = next(self._ids)
                return request_id, await self._submit(request_id, rendered, params)
        except Refused as error:
            return Dropped(request.id, error.reason, str(error))

    async def _start_scoring(
        self, prompt: Prompt, token_ids: Sequence[int]
    ) -> tuple[str, Awaitable[RequestOutput]] | Dropped:
        """Hand an answer to the engine, or say why not; the caller holds the lock."""
        try:
            request_id = next(self._ids)
            return request_id, await self._submit_scoring(request_id, prompt, token_ids)
        except Refused as error:
            return Dropped(prompt.id, error.reason, str(error))

    async def _score(
        self, prompt: Prompt, token_ids: Sequence[int]
    ) -> tuple[float, ...]:
        output = await (await self._submit_scoring(next(self._ids), prompt, token_ids))
        return token_logprobs(output, token_ids)

    async def _submit_scoring(
        self, request_id: str, prompt: Prompt, token_ids: Sequence[int]
    ) -> Awaitable[RequestOutput]:
        if not token_ids or set(token_ids) & set(self.encoder.media_token_ids):
            raise Refused(
                "response",
                f"prompt {prompt.id}: expected a response of text tokens, got {token_ids}",
            )
        built = self._builder.build(prompt, token_ids[:-1])
        rendered = await self._render(built.payload)
        self._builder.check(built, rendered["prompt_token_ids"])
        rendered["prompt_token_ids"] = [*rendered["prompt_token_ids"], token_ids[-1]]
        return await self._submit(request_id, rendered, scoring_params())

    async def _policy(self) -> LoRARequest | None:
        """The adapter that a request carries; of zeros before the first push. None where whole weights are pushed."""
        if self._adapter is not None and self._lora_request is None:
            with shared_adapter(
                zero_adapter(self._shapes, self._adapter), self._adapter
            ) as folder:
                await self._load_adapter(adapter_request(folder, load=True))
                self._lora_request = adapter_request(folder, load=False)
        return self._lora_request

    @abstractmethod
    async def _load_adapter(self, adapter: LoRARequest) -> None:
        """Read the adapter's folder, in place of what it was."""

    @abstractmethod
    def _launch(self, arguments: dict[str, Any]) -> None:
        """Start vLLM; the last thing that the constructor does."""

    @abstractmethod
    async def _render(self, payload: dict[str, Any]) -> Any:
        """vLLM's own form of a prompt, image tokens expanded in `prompt_token_ids`."""

    @abstractmethod
    async def _submit(
        self, request_id: str, rendered: Any, params: SamplingParams
    ) -> Awaitable[RequestOutput]:
        """Enqueue; what comes back gives the finished output when awaited."""

    @abstractmethod
    async def _abort(self, request_ids: Sequence[str]) -> None: ...

    @abstractmethod
    async def _swap(self, path: str, version: str) -> str:
        """Load a weight file or an adapter's folder between two steps, drop prefix, multimodal and encoder caches.

        Returns:
            The version's echo.
        """

    @abstractmethod
    async def close(self) -> None: ...
