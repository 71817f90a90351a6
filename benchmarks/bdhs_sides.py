"""The two sides of `benchmarks.bdhs`, each the only work of its process, behind the same `generate_pairs`.

Both answer generation requests; sentences, masks, seeds, assembling and the filter are shared code. Time is booked to
`vision`, `prefill`, `decode`, `filter` (similarity) and `other` (reading pictures, tokenizing, scheduling, joining).
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from transformers import LlavaForConditionalGeneration

from actors.bdhs import generate_pairs
from actors.similarity import LexicalSimilarity
from actors.vision_features import vision_inputs
from benchmarks.bdhs_model import MAX_LENGTH, NUM_IMAGE_TOKENS
from benchmarks.masked_forward import visible_mask
from common.bdhs_config import BdhsConfig
from common.chat import ChatEncoder, EncodedPrompt
from common.config import EngineOptions, Model, Rollout
from common.protocols import GenerationRequest
from common.records import Completion, Dropped, PreferencePair, Prompt, RolloutGroup

Result = TypeVar("Result")
PARTS = ("vision", "prefill", "decode", "filter", "other")


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How a side runs. `batches` are row counts the plain side may choose from."""

    model: str
    dtype: str
    cuda: bool
    max_num_seqs: int
    kv_cache_bytes: int
    block_size: int
    batches: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One measured pass over a set of prompts. `parts` are seconds; `answers` the rejected texts by prompt id."""

    seconds: float
    parts: dict[str, float]
    answers: dict[str, str]
    mean_visible: float
    num_requests: int


class Side(ABC):
    """One way of answering the requests of BDHS."""

    name: str

    def __init__(self) -> None:
        self.parts: defaultdict[str, float] = defaultdict(float)
        self._runner = asyncio.Runner()
        self._num_requests = 0

    @abstractmethod
    async def answer(
        self, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        """One result per request, in order; its parts booked."""

    @abstractmethod
    def settle(self, prompts: Sequence[Prompt], config: BdhsConfig) -> None:
        """Choose what is fastest here, before anything is measured."""

    def run(self, prompts: Sequence[Prompt], config: BdhsConfig) -> Turn:
        """All pairs of these prompts, everything in flight together."""
        self.parts.clear()
        self._num_requests = 0
        similarity = self.timed("filter", LexicalSimilarity().__call__)

        async def collect() -> list[Any]:
            stream = generate_pairs(
                iter(prompts),
                self._generate,
                config=config,
                similarity=_Named(similarity),
                num_image_tokens=lambda prompt: NUM_IMAGE_TOKENS,
                window=len(prompts),
            )
            return [outcome async for outcome in stream]

        started = time.perf_counter()
        outcomes = self._runner.run(collect())
        seconds = time.perf_counter() - started
        answers = {}
        for outcome in outcomes:
            assert isinstance(outcome.result, PreferencePair), outcome.result
            answers[outcome.prompt_id] = outcome.result.rejected.text
        parts = {name: self.parts[name] for name in PARTS[:-1]}
        parts["other"] = seconds - sum(parts.values())
        visible = sum(outcome.num_visible for outcome in outcomes) / len(outcomes)
        return Turn(seconds, parts, answers, visible, self._num_requests)

    async def _generate(
        self, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        """Random weights know no full stop: a tail that fills its tokens counts as ended."""
        self._num_requests += len(requests)
        groups = await self.answer(requests)
        return [
            group if isinstance(group, Dropped) else _ended(group) for group in groups
        ]

    def timed(
        self, part: str, function: Callable[..., Result]
    ) -> Callable[..., Result]:
        """The function, its time booked to `part`, the device waited for."""

        @functools.wraps(function)  # transformers looks at the signature
        def call(*args: Any, **kwargs: Any) -> Result:
            started = self.clock()
            result = function(*args, **kwargs)
            self.parts[part] += self.clock() - started
            return result

        return call

    def clock(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


@dataclasses.dataclass(frozen=True, slots=True)
class _Named:
    measure: Callable[..., list[float]]
    name: str = "lexical"

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        return self.measure(pairs)


def _ended(group: RolloutGroup) -> RolloutGroup:
    return dataclasses.replace(
        group,
        completions=tuple(
            dataclasses.replace(one, finish_reason="stop") for one in group.completions
        ),
    )


class Ours(Side):
    """The rollout worker's engine: shortened sequences in vLLM, image features once per image."""

    name = "ours"

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options
        self._engine = self._runner.run(self._start())

    async def _start(self) -> Any:
        from actors.engines import make_engine

        options = self._options
        engine: Any = make_engine(
            Model(path=options.model, dtype=options.dtype, max_length=MAX_LENGTH),  # type: ignore[arg-type]
            Rollout(
                deterministic=True,
                engine=EngineOptions(
                    max_num_seqs=options.max_num_seqs,
                    kv_cache_bytes=options.kv_cache_bytes,
                    block_size=options.block_size,
                    gpu_memory_utilization=0.5,
                ),
            ),
        )
        engine._features.prepare = self.timed("vision", engine._features.prepare)
        step, scheduler = (
            engine._engine.step,
            engine._engine.engine_core.engine_core.scheduler,
        )

        def timed_step() -> Any:
            started, waiting = self.clock(), len(scheduler.waiting)
            outputs = step()
            part = "prefill" if len(scheduler.waiting) < waiting else "decode"
            self.parts[part] += self.clock() - started
            return outputs

        engine._engine.step = timed_step
        return engine

    async def answer(
        self, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        return await self._engine.generate(requests)  # type: ignore[no-any-return]

    def settle(self, prompts: Sequence[Prompt], config: BdhsConfig) -> None:
        """Nothing to choose."""


class Plain(Side):
    """Hugging Face `generate` with hidden image tokens masked: left-padded batches of rows of similar length."""

    name = "plain"

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._device = "cuda" if options.cuda else "cpu"
        self._batches = options.batches
        self.batch = options.batches[0]
        self._encoder = ChatEncoder(options.model, MAX_LENGTH)
        dtype = getattr(torch, options.dtype)
        model: Any = LlavaForConditionalGeneration.from_pretrained(
            options.model, dtype=dtype
        )
        self._model: Any = model.to(self._device).eval()
        inner = self._model.model
        inner.get_image_features = self.timed("vision", inner.get_image_features)
        forward = inner.language_model.forward

        def timed_forward(*args: Any, **kwargs: Any) -> Any:
            part = "prefill" if kwargs["inputs_embeds"].shape[1] > 1 else "decode"
            return self.timed(part, forward)(*args, **kwargs)

        inner.language_model.forward = timed_forward

    def settle(self, prompts: Sequence[Prompt], config: BdhsConfig) -> None:
        """Choose the batch size that is fastest here."""
        if len(self._batches) > 1:
            seconds = {}
            for size in self._batches:
                self.batch = size
                seconds[size] = self.run(prompts, config).seconds
            self.batch = min(seconds, key=seconds.__getitem__)

    async def answer(
        self, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        encoded: dict[str, EncodedPrompt] = {}
        rows = []
        for request in requests:
            if request.prompt.id not in encoded:
                encoded[request.prompt.id] = self._encoder.encode_prompt(request.prompt)
            prefix = (
                self._encoder.encode_response(request.prefix)[:-1]
                if request.prefix
                else ()
            )
            rows.append((*encoded[request.prompt.id].token_ids, *prefix))
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        groups: dict[int, RolloutGroup] = {}
        for at in range(0, len(order), self.batch):
            batch = order[at : at + self.batch]
            images = [
                vision_inputs(encoded[requests[index].prompt.id].model_inputs)
                for index in batch
            ]
            answers = self._sample(
                [requests[i] for i in batch], [rows[i] for i in batch], images
            )
            for index, token_ids in zip(batch, answers, strict=True):
                groups[index] = self._group(requests[index], token_ids)
        return [groups[index] for index in range(len(requests))]

    @torch.inference_mode()
    def _sample(
        self,
        requests: Sequence[GenerationRequest],
        rows: Sequence[tuple[int, ...]],
        images: Sequence[dict[str, Any]],
    ) -> list[list[int]]:
        """Answer tokens of each row, padding and end included."""
        encoder, longest = self._encoder, max(map(len, rows))
        ids = torch.full((len(rows), longest), encoder.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for index, (request, row) in enumerate(zip(requests, rows, strict=True)):
            assert request.visible_image_tokens is not None
            ids[index, -len(row) :] = torch.tensor(row)
            mask[index, -len(row) :] = visible_mask(
                row, encoder.image_token_id, request.visible_image_tokens
            )[0]
        pixels = torch.cat([one["pixel_values"] for one in images]).to(
            self._device, self._model.dtype
        )
        first = requests[0]
        torch.manual_seed(first.seed or 0)
        sampling = (
            {"do_sample": True, "temperature": first.temperature, "top_k": 0}
            if first.temperature
            else {}
        )
        found = self._model.generate(
            input_ids=ids.to(self._device),
            attention_mask=mask.to(self._device),
            pixel_values=pixels,
            max_new_tokens=first.max_tokens,
            suppress_tokens=list(encoder.media_token_ids),
            **(sampling or {"do_sample": False}),
        )
        return found[:, longest:].tolist()  # type: ignore[no-any-return]

    def _group(self, request: GenerationRequest, token_ids: list[int]) -> RolloutGroup:
        text = self._encoder.decode(tuple(token_ids)).rstrip(
            "\ufffd"
        )  # vLLM keeps back unfinished characters, too
        ends = [text.index(stop) + len(stop) for stop in request.stop if stop in text]
        completion = Completion(
            tuple(token_ids), text[: min(ends, default=len(text))], 0, 0, "stop"
        )
        return RolloutGroup(request.id, request.prompt, (), 0, (completion,))


_side: Ours | Plain


def start(kind: str, options: Options, threads: int) -> None:
    """Make this process one of the sides."""
    global _side
    torch.set_num_threads(threads)
    _side = Ours(options) if kind == Ours.name else Plain(options)


def settle(prompts: Sequence[Prompt], config: BdhsConfig) -> int | None:
    """Warm up; the batch size the plain side chose."""
    _side.settle(prompts, config)
    return _side.batch if isinstance(_side, Plain) else None


def run(prompts: Sequence[Prompt], config: BdhsConfig) -> Turn:
    """One measured turn of this process's side."""
    return _side.run(prompts, config)
