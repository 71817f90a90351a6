"""What both vLLM engines share: requests in, groups and scores out; for weights see `Receiving`.

    generate        image features of shortened prompts, a batch at a time, while the engine runs the batches before
                    build -> render (vLLM expands image tokens) -> check -> submit -> await -> RolloutGroup

Rendering and submitting exclude a swap; sampling does not. A running answer goes on under the new weights after its
prefix is computed again. If rendering did not exclude a swap, vLLM's two multimodal caches (one in this process, one in
the engine's) could be emptied at different points of the request stream and disagree.
"""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from functools import partial
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
    sampling_params,
    scoring_params,
)
from actors.engine.results import likely_logprobs, to_group, token_logprobs
from actors.engine.submissions import Submissions, Submitted
from actors.vllm_api import (
    LoRARequest,
    RequestOutput,
    SamplingParams,
    allow_compile,
    current_platform,
)
from actors.weights.adapter_push import adapter_shapes, pushed_adapter
from actors.weights.push_check import adapter_alone, whole_weights
from actors.weights.shared_memory import sweep
from actors.weights.streamed_push import KeptTensors
from common.chat import encoder_of
from common.checkpoint.layout import empty_model, layout_of
from common.config import Lora, Model, Rollout
from common.errors import Refused
from common.protocols import GenerationRequest, Vitals
from common.records import (
    LIKELIEST,
    AnswerLogprobs,
    Dropped,
    ProbeAnswer,
    Prompt,
    RolloutGroup,
)
from common.row_faults import outside_embedding, refusing

_UNRENDERED = "processor"
"""The drop reason of a prompt that vLLM's processor does not take."""


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
        self._kept = KeptTensors()
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

    def vitals(self) -> Vitals:
        """How vLLM is, told to any thread; an engine of this process is as well as the process."""
        return Vitals()

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        """One result per request, in order."""
        async with Submissions[RolloutGroup | Dropped](self._abort) as submissions:
            for batch in by_images(requests):
                shortened = [
                    request.prompt for request in batch if request.visible_image_tokens
                ]
                async with self._swap_lock:
                    self._features.prepare(shortened)
                for request in batch:
                    submit = partial(self._submit_request, request)
                    await submissions.add(request.id, submit)
            return await submissions.results()

    async def token_logprobs(
        self, prompt: Prompt, token_ids: Sequence[int]
    ) -> tuple[float, ...]:
        """Log-prob (nats) of each token of a given response. Raises Refused when it cannot be run."""
        async with self._swap_lock:
            _, scored = await self._submit_scoring(prompt, token_ids)
            with failure_explained():
                output = await scored
            return token_logprobs(output, token_ids)

    async def score(
        self, answers: Sequence[tuple[Prompt, str]]
    ) -> list[tuple[float, ...] | Dropped]:
        """Token log-probs (nats) of whole answers under one set of weights, one result per answer, in order."""
        async with (
            # Held to the end, so that one set of weights scores all answers.
            self._swap_lock,
            Submissions[tuple[float, ...]](self._abort) as submissions,
        ):
            for prompt, text in answers:
                submit = partial(self._submit_answer, prompt, text)
                await submissions.add(prompt.id, submit)
            return await submissions.results()

    async def _score_probe(
        self, answers: Sequence[ProbeAnswer]
    ) -> list[AnswerLogprobs | None]:
        """Log-probs of the likeliest tokens at every place of the answers; the caller holds the lock."""
        async with Submissions[AnswerLogprobs](self._abort) as submissions:
            for answer in answers:
                submit = partial(self._submit_probe, answer)
                await submissions.add(answer.prompt.id, submit)
            results = await submissions.results()
        scored: list[AnswerLogprobs | None] = []
        for result in results:
            scored.append(None if isinstance(result, Dropped) else result)
        return scored

    async def _submit_request(
        self, request: GenerationRequest
    ) -> Submitted[RolloutGroup | Dropped]:
        """Hand a request to vLLM. Raises Refused when it cannot be run."""
        encoder = self.encoder
        suffix: tuple[int, ...] = ()
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
        return Submitted(
            request_id, output, lambda output: to_group(request, output, encoder)
        )

    async def _submit_answer(
        self, prompt: Prompt, text: str
    ) -> Submitted[tuple[float, ...]]:
        """Hand an answer to vLLM for scoring, or raise Refused; the caller holds the lock."""
        token_ids = self.encoder.encode_response(text)
        request_id, output = await self._submit_scoring(prompt, token_ids)
        return Submitted(
            request_id, output, lambda output: token_logprobs(output, token_ids)
        )

    async def _submit_probe(self, answer: ProbeAnswer) -> Submitted[AnswerLogprobs]:
        token_ids = answer.token_ids
        request_id, output = await self._submit_scoring(
            answer.prompt, token_ids, LIKELIEST
        )
        num_tokens = len(token_ids)
        return Submitted(
            request_id, output, lambda output: likely_logprobs(output, num_tokens)
        )

    async def _submit_scoring(
        self,
        prompt: Prompt,
        token_ids: Sequence[int],
        likeliest: int = 0,
    ) -> tuple[str, Awaitable[RequestOutput]]:
        """Return vLLM's id of the request, and what its output is awaited with."""
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
        request_id = self._next_id()
        with failure_explained():
            return request_id, await self._submit(request_id, rendered, params)

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

    def _next_id(self) -> str:
        return str(next(self._request_numbers))

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
