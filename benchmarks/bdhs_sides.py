"""The two sides of `benchmarks.bdhs`, each in a process of its own, behind the same `generate_pairs`.

Both answer generation requests; sentences, masks, seeds, assembling and the filter are shared code. Time is counted as
`vision`, `prefill`, `decode`, `filter` (similarity) or `other` (reading pictures, tokenizing, scheduling, joining).
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

from actors.bdhs.sampling import Outcome, generate_pairs
from actors.bdhs.similarity import LexicalSimilarity
from actors.bdhs.vision_features import vision_inputs
from benchmarks.bdhs_model import MAX_LENGTH, NUM_IMAGE_TOKENS
from benchmarks.masked_forward import visible_mask
from common.chat import ChatEncoder, EncodedPrompt
from common.config import EngineOptions, Model, Rollout
from common.config.bdhs import BdhsConfig
from common.protocols import GenerationRequest
from common.records import Completion, Dropped, PreferencePair, Prompt, RolloutGroup

Result = TypeVar("Result")
TIMED_PARTS = ("vision", "prefill", "decode", "filter")
PARTS = (*TIMED_PARTS, "other")


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How a side runs.

    Attributes:
        model: directory of the model.
        dtype: torch's name of the weights' type.
        cuda: whether the plain side runs on a GPU.
        max_num_seqs: sequences that vLLM runs at a time.
        kv_cache_bytes: of vLLM; 0 leaves it to vLLM.
        block_size: tokens of a block of vLLM's cache.
        batches: numbers of rows that the plain side may choose from.
    """

    model: str
    dtype: str
    cuda: bool
    max_num_seqs: int
    kv_cache_bytes: int
    block_size: int
    batches: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One measured pass over a set of prompts.

    Attributes:
        seconds: of the whole pass.
        parts: seconds by part, see the module.
        answers: rejected texts by prompt id.
        mean_visible: image tokens that an attempt could see.
        num_requests: sentences that were completed.
    """

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
        self,
        requests: list[GenerationRequest],
    ) -> list[RolloutGroup | Dropped]:
        """One result per request, in order. Adds to `parts`."""

    @abstractmethod
    def settle(
        self,
        prompts: Sequence[Prompt],
        config: BdhsConfig,
    ) -> None:
        """Choose what is fastest on this machine, before anything is measured."""

    def run(
        self,
        prompts: Sequence[Prompt],
        config: BdhsConfig,
    ) -> Turn:
        """Make a pair of every prompt, all of them in flight together."""
        self.parts.clear()
        self._num_requests = 0
        started = time.perf_counter()
        # From the first draw to the last pair, everything between included.
        outcomes = self._runner.run(self._outcomes(prompts, config))
        seconds = time.perf_counter() - started

        answers = {}
        num_visible = 0
        for outcome in outcomes:
            assert isinstance(outcome.result, PreferencePair), outcome.result
            answers[outcome.prompt_id] = outcome.result.rejected.text
            num_visible += outcome.num_visible
        parts = {name: self.parts[name] for name in TIMED_PARTS}
        parts["other"] = seconds - sum(parts.values())
        return Turn(
            seconds,
            parts,
            answers,
            mean_visible=num_visible / len(outcomes),
            num_requests=self._num_requests,
        )

    async def _outcomes(
        self,
        prompts: Sequence[Prompt],
        config: BdhsConfig,
    ) -> list[Outcome]:
        # The same filter on both sides, its time apart.
        similarity = self.timed("filter", LexicalSimilarity().__call__)
        stream = generate_pairs(
            iter(prompts),
            self._generate,
            config=config,
            similarity=_Named(similarity),
            num_image_tokens=lambda prompt: NUM_IMAGE_TOKENS,
            window=len(prompts),
        )
        return [outcome async for outcome in stream]

    def close(self) -> None:
        """Stop what runs; the side cannot be used afterwards."""
        self._runner.close()

    async def _generate(
        self,
        requests: list[GenerationRequest],
    ) -> list[RolloutGroup | Dropped]:
        """Answer requests, and count a tail that fills its tokens as ended: random weights write no full stop."""
        self._num_requests += len(requests)
        results: list[RolloutGroup | Dropped] = []
        for group in await self.answer(requests):
            result = group if isinstance(group, Dropped) else _ended(group)
            results.append(result)
        return results

    def timed(
        self,
        part: str,
        function: Callable[..., Result],
    ) -> Callable[..., Result]:
        """The function, its seconds added to `part`."""

        @functools.wraps(function)  # transformers looks at the signature
        def call(*args: Any, **kwargs: Any) -> Result:
            started = self.clock()
            result = function(*args, **kwargs)
            self.parts[part] += self.clock() - started
            return result

        return call

    def clock(self) -> float:
        """Seconds, after the device has done all that it was asked for."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


@dataclasses.dataclass(frozen=True, slots=True)
class _Named:
    measure: Callable[..., list[float]]
    name: str = "lexical"

    def __call__(
        self,
        pairs: Sequence[tuple[str, str]],
    ) -> list[float]:
        return self.measure(pairs)


def _ended(group: RolloutGroup) -> RolloutGroup:
    (completion,) = group.completions
    ended = dataclasses.replace(completion, finish_reason="stop")
    return dataclasses.replace(group, completions=(ended,))


class Ours(Side):
    """The rollout worker's engine: shortened sequences in vLLM, image features once per image."""

    name = "ours"

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options
        self._engine = self._runner.run(self._start())

    async def _start(self) -> Any:
        from actors.engine.factory import make_engine

        options = self._options
        model = Model.model_validate(
            {
                "path": options.model,
                "dtype": options.dtype,
                "max_length": MAX_LENGTH,
            }
        )
        engine_options = EngineOptions(
            max_num_seqs=options.max_num_seqs,
            kv_cache_bytes=options.kv_cache_bytes,
            block_size=options.block_size,
            # The plain side has the other half of the GPU.
            gpu_memory_utilization=0.5,
        )
        rollout = Rollout(deterministic=True, engine=engine_options)
        engine: Any = make_engine(model, rollout)
        features = engine._features
        features.prepare = self.timed("vision", features.prepare)
        llm = engine._engine
        step = llm.step
        scheduler = llm.engine_core.engine_core.scheduler

        def timed_step() -> Any:
            started = self.clock()
            num_waiting = len(scheduler.waiting)
            outputs = step()
            # A step that takes in new requests prefills them.
            part = "prefill" if len(scheduler.waiting) < num_waiting else "decode"
            self.parts[part] += self.clock() - started
            return outputs

        llm.step = timed_step
        return engine

    def close(self) -> None:
        self._runner.run(self._engine.close())
        super().close()

    async def answer(
        self,
        requests: list[GenerationRequest],
    ) -> list[RolloutGroup | Dropped]:
        return await self._engine.generate(requests)  # type: ignore[no-any-return]

    def settle(
        self,
        prompts: Sequence[Prompt],
        config: BdhsConfig,
    ) -> None:
        """Does nothing: there is nothing to choose."""


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
        # Timed by wrapping what `generate` calls.
        inner = self._model.model
        inner.get_image_features = self.timed("vision", inner.get_image_features)
        forward = inner.language_model.forward

        def timed_forward(*args: Any, **kwargs: Any) -> Any:
            # After the prefill every forward is of one token.
            part = "prefill" if kwargs["inputs_embeds"].shape[1] > 1 else "decode"
            return self.timed(part, forward)(*args, **kwargs)

        inner.language_model.forward = timed_forward

    def settle(
        self,
        prompts: Sequence[Prompt],
        config: BdhsConfig,
    ) -> None:
        """Choose the batch size that is fastest here."""
        if len(self._batches) == 1:
            return
        seconds = {}
        for size in self._batches:
            self.batch = size
            seconds[size] = self.run(prompts, config).seconds
        self.batch = min(seconds, key=seconds.__getitem__)

    async def answer(
        self,
        requests: list[GenerationRequest],
    ) -> list[RolloutGroup | Dropped]:
        encoded: dict[str, EncodedPrompt] = {}
        rows = []
        for request in requests:
            prompt = request.prompt
            if prompt.id not in encoded:
                encoded[prompt.id] = self._encoder.encode_prompt(prompt)
            prefix: tuple[int, ...] = ()
            if request.prefix:
                prefix = self._encoder.encode_prefix(request.prefix)
            rows.append((*encoded[prompt.id].token_ids, *prefix))

        # Rows of similar length together, so that little is padding.
        lengths = [len(row) for row in rows]
        order = sorted(range(len(rows)), key=lengths.__getitem__)
        groups: dict[int, RolloutGroup] = {}
        for start in range(0, len(order), self.batch):
            indices = order[start : start + self.batch]
            batch = []
            batch_rows = []
            images = []
            for index in indices:
                request = requests[index]
                inputs = encoded[request.prompt.id].model_inputs
                batch.append(request)
                batch_rows.append(rows[index])
                images.append(vision_inputs(inputs))
            answers = self._sample(batch, batch_rows, images)
            for index, token_ids in zip(indices, answers, strict=True):
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
        encoder = self._encoder
        longest = max(len(row) for row in rows)
        # Padded on the left, where `generate` expects it.
        ids = torch.full((len(rows), longest), encoder.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for index, (request, row) in enumerate(zip(requests, rows, strict=True)):
            visible = request.visible_image_tokens
            assert visible is not None
            row_mask = visible_mask(row, encoder.image_token_id, visible)
            ids[index, -len(row) :] = torch.tensor(row)
            mask[index, -len(row) :] = row_mask[0]

        # An image is encoded once for every sentence about it: `generate` has no cache of features.
        pixels = torch.cat([inputs["pixel_values"] for inputs in images])
        pixels = pixels.to(self._device, self._model.dtype)
        # All requests of a turn are sampled alike.
        first = requests[0]
        sampling: dict[str, Any] = {"do_sample": False}
        if first.temperature:
            sampling = {
                "do_sample": True,
                "temperature": first.temperature,
                "top_k": 0,
            }
        torch.manual_seed(first.seed or 0)
        sequences = self._model.generate(
            input_ids=ids.to(self._device),
            attention_mask=mask.to(self._device),
            pixel_values=pixels,
            max_new_tokens=first.max_tokens,
            suppress_tokens=list(encoder.media_token_ids),
            **sampling,
        )
        answers: list[list[int]] = sequences[:, longest:].tolist()
        return answers

    def _group(
        self,
        request: GenerationRequest,
        token_ids: list[int],
    ) -> RolloutGroup:
        # vLLM, too, keeps back characters that are not finished.
        text = self._encoder.decode(tuple(token_ids)).rstrip("\ufffd")
        end = len(text)
        for stop in request.stop:
            place = text.find(stop)
            if place >= 0:
                end = min(end, place + len(stop))
        completion = Completion(
            tuple(token_ids),
            text[:end],
            0,
            0,
            "stop",
        )
        return RolloutGroup(
            request.id,
            request.prompt,
            (),
            0,
            (completion,),
        )


# One side per process; the pool's functions find it here.
_side: Ours | Plain


def start(
    kind: str,
    options: Options,
    threads: int,
) -> None:
    """Make this process one of the sides."""
    global _side
    torch.set_num_threads(threads)
    _side = Ours(options) if kind == Ours.name else Plain(options)


def settle(
    prompts: Sequence[Prompt],
    config: BdhsConfig,
) -> int | None:
    """Let the side choose, and return the batch size if it is the plain one."""
    _side.settle(prompts, config)
    return _side.batch if isinstance(_side, Plain) else None


def run(
    prompts: Sequence[Prompt],
    config: BdhsConfig,
) -> Turn:
    """One measured turn of this process's side."""
    return _side.run(prompts, config)
