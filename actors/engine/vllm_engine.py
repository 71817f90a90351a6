"""What both vLLM engines share: requests in, groups out, weights swapped and proven.

    generate        image features of shortened prompts, a batch at a time, while the engine runs the batches before
                    build -> render (vLLM expands image tokens) -> check -> submit -> await -> RolloutGroup
    load_weights    check arrays -> shared memory -> swap between two steps, caches dropped -> version echo -> probe

Rendering and submitting exclude a swap; sampling does not. A running answer goes on under the new weights after its
prefix is computed again. If rendering did not exclude a swap, vLLM's two multimodal caches (one in this process, one in
the engine's) could be emptied at different points of the request stream and disagree.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from actors.bdhs.vision_features import VisionFeatures, by_images
from actors.engine.arguments import engine_arguments
from actors.engine.causes import failure_explained, start_explained
from actors.engine.numerics_gate import DEFAULT_LIMITS, GateLimits, NumericsGate
from actors.engine.receiving import Receiving
from actors.engine.requests import (
    EnginePrompt,
    PromptBuilder,
    likely_logprobs,
    sampling_params,
    scoring_params,
    to_group,
    token_logprobs,
)
from actors.vllm_api import (
    LoRARequest,
    RequestOutput,
    SamplingParams,
    allow_compile,
    current_platform,
)
from actors.weights.adapter_push import (
    adapter_request,
    adapter_shapes,
    pushed_adapter,
    shared_adapter,
    zero_adapter,
)
from actors.weights.push_check import adapter_alone, whole_weights
from actors.weights.sender import shared_weights
from actors.weights.shared_memory import in_thread, sweep
from common.chat import encoder_of
from common.checkpoint.layout import empty_model, layout_of
from common.config import Lora, Model, Rollout
from common.errors import Refused
from common.protocols import GenerationRequest, Tensors, Vitals
from common.records import (
    LIKELIEST,
    AnswerLogprobs,
    Dropped,
    LoadReport,
    LogprobProbe,
    ProbeAnswer,
    ProbeReading,
    Prompt,
    RolloutGroup,
    WeightManifest,
)
from common.row_faults import outside_embedding, refusing

NUM_TRIES = 2
"""How often a request is given to vLLM that fails inside it."""
_UNRENDERED = "processor"
"""The drop reason of a prompt that vLLM's processor does not take."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request that is with vLLM under this id; awaiting `output` gives its finished output.

    `answer` holds the tokens that are scored, if any.
    """

    id: str
    output: Awaitable[RequestOutput]
    answer: tuple[int, ...] = ()


class VllmEngine(Receiving, ABC):
    """Implements common.protocols.Engine over one vLLM engine; subclasses say where it runs."""

    def __init__(
        self,
        model: Model,
        rollout: Rollout,
        *,
        seed: int = 0,
        gate: GateLimits = DEFAULT_LIMITS,
        timeout_s: float = 600,
        sleeps: bool = False,
    ) -> None:
        self.encoder = encoder = encoder_of(model)
        self._gate = NumericsGate(
            gate, self._score_probe, holds_start=not model.tuning.is_quantized
        )
        self._timeout_s = timeout_s
        # A CPU engine sleeps as well, and keeps its memory.
        self._frees_memory = sleeps and current_platform.is_sleep_mode_available()
        dtype = getattr(torch, model.dtype)
        self._features = VisionFeatures(encoder, dtype)
        self._builder = PromptBuilder(encoder, self._features)
        self._model_path = model.path
        self._num_workers = rollout.engine.tensor_parallel_size
        self._tower_is_frozen = _is_tower_frozen(model)
        self._swap_lock = asyncio.Lock()
        self._request_numbers = itertools.count()
        self._version = 0
        self._adapter = pushed_adapter(model, rollout)
        self._lora_request: LoRARequest | None = None
        if self._adapter is None:
            self._expected = whole_weights(layout_of(model.path), model.freeze_vision)
        else:
            shapes = adapter_shapes(empty_model(model.path), self._adapter)
            self._expected = adapter_alone(shapes)
        # Before this engine creates a folder of its own.
        sweep()
        arguments = engine_arguments(model, rollout, encoder, seed)
        allow_compile(not rollout.engine.enforce_eager)
        # Last: a failure above must not leave a process behind.
        with start_explained(f"model.path {model.path}"):
            self._launch(arguments)

    @property
    def weight_version(self) -> int:
        return self._version

    def vitals(self) -> Vitals:
        """How vLLM is, told to any thread; an engine of this process is as well as the process."""
        return Vitals()

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        """One result per request, in order."""
        submitted: list[Submitted | Dropped] = []
        try:
            for batch in by_images(requests):
                shortened = [
                    request.prompt for request in batch if request.visible_image_tokens
                ]
                async with self._swap_lock:
                    self._features.prepare(shortened)
                for request in batch:
                    entry = await self._submit_request(request)
                    submitted.append(entry)

            results: list[RolloutGroup | Dropped] = []
            for request, entry in zip(requests, tuple(submitted), strict=True):
                again = partial(self._submit_request, request)
                output = await self._finished(request.id, entry, again, submitted)
                if isinstance(output, Dropped):
                    results.append(output)
                else:
                    results.append(to_group(request, output, self.encoder))
            return results
        # A caller that is cancelled leaves no requests behind, either.
        except BaseException:
            await self._abort_submitted(submitted)
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
        submitted: list[Submitted | Dropped] = []
        # Held to the end, so that one set of weights scores all answers.
        async with self._swap_lock:
            try:
                for prompt, text in answers:
                    entry = await self._submit_answer(prompt, text)
                    submitted.append(entry)

                results: list[tuple[float, ...] | Dropped] = []
                for answer, entry in zip(answers, tuple(submitted), strict=True):
                    again = partial(self._submit_answer, *answer)
                    output = await self._finished(answer[0].id, entry, again, submitted)
                    if isinstance(output, Dropped):
                        results.append(output)
                        continue
                    assert isinstance(entry, Submitted), "what has an output was taken"
                    results.append(token_logprobs(output, entry.answer))
                return results
            except BaseException:
                await self._abort_submitted(submitted)
                raise

    async def load_weights(
        self, manifest: WeightManifest, tensors: Tensors
    ) -> LoadReport:
        """Swap the weights and prove them.

        Raises:
            UserError: the tensors do not fit the manifest or the model; the old weights stay.
            RuntimeError: the engine echoes another version, disagrees with the probe, or takes too long.
        """
        started = time.perf_counter()
        self._expected.check(manifest, tensors)
        version = str(manifest.version)
        async with (
            self._load_limit(version),
            # Writing a large model takes seconds, during which requests go on.
            in_thread(self._shared(manifest, tensors)) as path,
            self._swap_lock,
        ):
            paused = time.perf_counter()
            with failure_explained():
                echo = await self._swap(partial(self._load, path), version)
            pause_s = time.perf_counter() - paused
            self._take_version(manifest.version, echo)
            # Adapters are on the language model only.
            if self._adapter is None:
                self._features.load(tensors)
            reading = await self._prove(manifest)
        seconds = time.perf_counter() - started
        return LoadReport(manifest.version, reading, seconds, pause_s)

    async def _load(self, path: Path) -> None:
        """Load a weight file or an adapter's folder."""
        if self._adapter is None:
            await self._on_workers("swap_weights", str(path))
        else:
            await self._policy()
            await self._load_adapter(adapter_request(path, load=True))

    def _shared(
        self, manifest: WeightManifest, tensors: Tensors
    ) -> AbstractContextManager[Path]:
        """The tensors in shared memory, in the form that `_swap` reads."""
        # Half of the limit remains for a copy of its own, when the engine that writes for all of a node hangs.
        patience_s = self._timeout_s / 2
        if self._adapter is None:
            return shared_weights(manifest, tensors, patience_s)
        return shared_adapter(manifest, tensors, self._adapter, patience_s)

    async def _prove(self, manifest: WeightManifest) -> ProbeReading | None:
        return await self._gate.prove(manifest)

    async def calibrate(self, probe: LogprobProbe) -> ProbeReading:
        """How far engine and learner are apart while both hold the start policy; pushes are measured by that.

        Raises:
            RuntimeError: so far that the engine holds another model.
        """
        async with self._swap_lock:
            return await self._gate.calibrate(probe)

    async def _score_probe(
        self, answers: Sequence[ProbeAnswer]
    ) -> list[AnswerLogprobs | None]:
        """Log-probs of the likeliest tokens at every place of the answers; the caller holds the lock."""

        async def submit(answer: ProbeAnswer) -> Submitted | Dropped:
            prompt, token_ids = answer.prompt, answer.token_ids
            return await self._submit_tokens(prompt, token_ids, LIKELIEST)

        submitted: list[Submitted | Dropped] = []
        scored: list[AnswerLogprobs | None] = []
        try:
            for answer in answers:
                submitted.append(await submit(answer))
            for answer, entry in zip(answers, tuple(submitted), strict=True):
                again = partial(submit, answer)
                id = answer.prompt.id
                output = await self._finished(id, entry, again, submitted)
                if isinstance(output, Dropped):
                    scored.append(None)
                else:
                    scored.append(likely_logprobs(output, len(answer.token_ids)))
            return scored
        except BaseException:
            await self._abort_submitted(submitted)
            raise

    async def _submit_request(self, request: GenerationRequest) -> Submitted | Dropped:
        """Hand a request to vLLM, or say why it cannot be run."""
        encoder = self.encoder
        suffix: tuple[int, ...] = ()
        try:
            if request.prefix:
                suffix = encoder.encode_prefix(request.prefix)
            async with self._swap_lock:
                built = self._builder.build(
                    request.prompt,
                    suffix,
                    request.visible_image_tokens,
                    request.noise,
                )
                rendered = await self._rendered(built)
                room = encoder.max_length - len(rendered["prompt_token_ids"])
                # The answer ends where the model does, however many tokens were asked for.
                params = sampling_params(
                    request,
                    room,
                    encoder.media_token_ids,
                    encoder.extra_stop_token_ids,
                )
                request_id = self._next_id()
                with failure_explained():
                    output = await self._submit(request_id, rendered, params)
                return Submitted(request_id, output)
        except Refused as error:
            return Dropped(request.id, error.reason, str(error))

    async def _submit_answer(self, prompt: Prompt, text: str) -> Submitted | Dropped:
        """Hand an answer to vLLM for scoring, or say why it cannot be run; the caller holds the lock."""
        try:
            answer = self.encoder.encode_response(text)
        except Refused as error:
            return Dropped(prompt.id, error.reason, str(error))
        return await self._submit_tokens(prompt, answer)

    async def _submit_tokens(
        self, prompt: Prompt, token_ids: Sequence[int], likeliest: int = 0
    ) -> Submitted | Dropped:
        request_id = self._next_id()
        try:
            output = await self._submit_scoring(
                request_id, prompt, token_ids, likeliest
            )
            return Submitted(request_id, output, tuple(token_ids))
        except Refused as error:
            return Dropped(prompt.id, error.reason, str(error))

    async def _finished(
        self,
        id: str,
        entry: Submitted | Dropped,
        submit_again: Callable[[], Awaitable[Submitted | Dropped]],
        submitted: list[Submitted | Dropped],
    ) -> RequestOutput | Dropped:
        """The output of a request, which is submitted once more when vLLM fails at it alone.

        vLLM ends a request with the reason "error" when another try may help: its two processes did not agree on which
        pictures both have, and now they do.
        """
        for attempt in range(NUM_TRIES):
            if attempt > 0:
                entry = await submit_again()
                # Whoever is cancelled aborts this one, too.
                submitted.append(entry)
            if isinstance(entry, Dropped):
                return entry
            with failure_explained():
                output = await entry.output
            if all(sequence.finish_reason != "error" for sequence in output.outputs):
                return output
        detail = f"vLLM ended the request with an error {NUM_TRIES} times; see its log"
        return Dropped(id, "engine_error", detail)

    async def _rendered(self, built: EnginePrompt) -> Any:
        """vLLM's form of a prompt, expanded as our processor expands it.

        Raises:
            Refused: vLLM's processor does not take this prompt, it is too long, or has ids that no embedding has.
            RuntimeError: the two processors disagree.
        """
        prompt = built.prompt
        self._check_ids(prompt, built.payload["prompt_token_ids"])
        what = f"prompt {prompt.id}: expected a prompt that vLLM's processor takes"
        try:
            with refusing(_UNRENDERED, what, "repair the row or take it out"):
                rendered = await self._render(built.payload)
            self._builder.check(built, rendered["prompt_token_ids"])
        except Refused as refused:
            await self._forget_images()
            if refused.reason == _UNRENDERED:
                # When our processor refuses it as well, its reason counts, as on every other path.
                self.encoder.encode_prompt(prompt)
            raise
        return rendered

    def _check_ids(self, prompt: Prompt, token_ids: Sequence[int]) -> None:
        """Refuse ids beyond the embedding, which would end the engine's process and all its requests with it."""
        encoder = self.encoder
        num_rows = encoder.config.get_text_config().vocab_size
        # Features take the place of media tokens, so these need no row.
        text_ids = set(token_ids).difference(encoder.media_token_ids)
        outside = outside_embedding(text_ids, num_rows)
        if outside is not None:
            raise Refused(
                "token_unknown",
                f"prompt {prompt.id}: expected token ids from 0 to {num_rows - 1} (rows of the model's embedding), "
                f"got {outside}; the tokenizer has tokens that the model lacks, take them out of the text",
            )

    async def _score(
        self, prompt: Prompt, token_ids: Sequence[int]
    ) -> tuple[float, ...]:
        scored = await self._submit_scoring(self._next_id(), prompt, token_ids)
        with failure_explained():
            output = await scored
        return token_logprobs(output, token_ids)

    async def _submit_scoring(
        self,
        request_id: str,
        prompt: Prompt,
        token_ids: Sequence[int],
        likeliest: int = 0,
    ) -> Awaitable[RequestOutput]:
        media_token_ids = set(self.encoder.media_token_ids)
        if not token_ids or media_token_ids.intersection(token_ids):
            raise Refused(
                "response",
                f"prompt {prompt.id}: expected a response of text tokens, got {token_ids}",
            )
        self._check_ids(prompt, token_ids)
        # The last token is only predicted: it is sampled, as the only one that is allowed.
        built = self._builder.build(prompt, token_ids[:-1])
        rendered = await self._rendered(built)
        params = scoring_params(token_ids[-1], likeliest)
        with failure_explained():
            return await self._submit(request_id, rendered, params)

    async def _abort_submitted(
        self,
        submitted: Sequence[Submitted | Dropped],
    ) -> None:
        running = [entry for entry in submitted if isinstance(entry, Submitted)]
        await self._abort([entry.id for entry in running])

    def _next_id(self) -> str:
        return str(next(self._request_numbers))

    async def _policy(self) -> LoRARequest | None:
        """The adapter that every request carries, zeros before the first push; None if whole weights are pushed."""
        if self._adapter is not None and self._lora_request is None:
            zeros = zero_adapter(empty_model(self._model_path), self._adapter)
            # Loaded before the first request, so that no request is without an adapter.
            async with in_thread(self._shared(*zeros)) as folder:
                await self._load_adapter(adapter_request(folder, load=True))
                self._lora_request = adapter_request(folder, load=False)
        return self._lora_request

    @abstractmethod
    async def _load_adapter(self, adapter: LoRARequest) -> None:
        """Read the adapter's folder and replace the adapter of the same name."""

    @abstractmethod
    def _launch(
        self,
        arguments: dict[str, Any],
    ) -> None:
        """Start vLLM; the last thing that the constructor does."""

    @abstractmethod
    async def _render(
        self,
        payload: dict[str, Any],
    ) -> Any:
        """vLLM's own form of a prompt, with image tokens expanded in `prompt_token_ids`."""

    @abstractmethod
    async def _submit(
        self, request_id: str, rendered: Any, params: SamplingParams
    ) -> Awaitable[RequestOutput]:
        """Enqueue a request and return an awaitable of its finished output."""

    @abstractmethod
    async def _forget_images(self) -> None:
        """Empty vLLM's multimodal caches, after a rendered prompt was not submitted.

        Rendering notes its images as sent; the engine's process, which never got them, would miss them later.
        """

    @abstractmethod
    async def _abort(self, request_ids: Sequence[str]) -> None: ...

    @abstractmethod
    async def sleep(self, level: int) -> None:
        """Free the GPU memory and drop all caches; see `Engine.sleep`. Requests that come before `wake` wait."""

    @abstractmethod
    async def wake(self) -> None:
        """Take the memory back, with empty caches."""

    @abstractmethod
    async def close(self) -> None: ...


def _is_tower_frozen(model: Model) -> bool:
    """Whether no push changes the vision encoder."""
    if isinstance(model.tuning, Lora):
        return "vision" not in model.tuning.sides
    return model.freeze_vision
