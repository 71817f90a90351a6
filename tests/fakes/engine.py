"""An engine that generates and scores with the fake policy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from actors.engine.numerics_gate import DEFAULT_LIMITS, NumericsGate
from common.data.images import read
from common.errors import Refused
from common.protocols import GenerationRequest, Tensors
from common.records import (
    AnswerLogprobs,
    Completion,
    Dropped,
    LoadReport,
    LogprobProbe,
    ProbeAnswer,
    ProbeReading,
    Prompt,
    RolloutGroup,
    WeightManifest,
)
from common.seeding import derive_seed
from tests.fakes.policy import (
    BOS,
    EOS,
    IMAGE_TOKEN,
    fake_checksum,
    fake_logprobs,
    text_ids,
)
from tests.probes import of_tokens


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
        self._asleep = False
        self._gate = NumericsGate(DEFAULT_LIMITS, self._score_probe)

    @property
    def weight_version(self) -> int:
        return self._version

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        # A real engine answers when it is woken, which may be never.
        assert not self._asleep, "asked while asleep"
        results = [self._complete(request) for request in requests]
        # New weights may arrive here, as in the middle of a real call.
        await asyncio.sleep(self._delay_s)
        return [self._with_last_version(result) for result in results]

    def _complete(self, request: GenerationRequest) -> RolloutGroup | Dropped:
        prompt_ids = self._read_prompt(request.id, request.prompt)
        if isinstance(prompt_ids, Dropped):
            return prompt_ids
        indices = range(request.num_completions)
        completions = [self._completion(request, index) for index in indices]
        return RolloutGroup(
            id=request.id,
            prompt=request.prompt,
            prompt_token_ids=prompt_ids,
            num_image_tokens=prompt_ids.count(IMAGE_TOKEN),
            completions=tuple(completions),
        )

    def _completion(self, request: GenerationRequest, index: int) -> Completion:
        seed = derive_seed(request.seed or 0, request.id, index, self._version)
        phrase = 0 if request.temperature == 0 else seed % len(self._phrases)
        text = self._phrases[phrase]
        tokens = text_ids(text)[: request.max_tokens]
        is_whole = len(tokens) < request.max_tokens
        token_ids = (*tokens, EOS) if is_whole else tokens
        logprobs = None
        if request.logprobs:
            logprobs = fake_logprobs(request.prompt, token_ids, self._bias)
        return Completion(
            token_ids=token_ids,
            text=text,
            min_weight_version=self._version,
            max_weight_version=self._version,
            finish_reason="stop" if is_whole else "length",
            token_logprobs=logprobs,
        )

    def _read_prompt(self, id: str, prompt: Prompt) -> tuple[int, ...] | Dropped:
        """The prompt's token ids, or why it cannot be run."""
        try:
            for image in prompt.images:
                read(image)
            return self._prompt_ids(prompt)
        except Refused as error:
            return Dropped(id, error.reason, str(error))

    def _prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        parts = [part for message in prompt.messages for part in message.parts]
        num_slots = sum(part.kind == "image" for part in parts)
        if num_slots != len(prompt.images):
            raise Refused(
                "image_count",
                f"prompt {prompt.id}: {len(prompt.images)} images for {num_slots} parts",
            )
        image_ids = (IMAGE_TOKEN,) * 4 * num_slots
        text = "".join(part.text for part in parts)
        ids = (BOS, *image_ids, *text_ids(text))
        if len(ids) >= self._max_length:
            raise Refused("prompt_too_long", f"prompt {prompt.id}: {len(ids)} tokens")
        return ids

    def _with_last_version(
        self, result: RolloutGroup | Dropped
    ) -> RolloutGroup | Dropped:
        """The engine may hold newer weights by the time that a call ends."""
        if isinstance(result, Dropped):
            return result
        version = self._version
        completions = [
            replace(completion, max_weight_version=version)
            for completion in result.completions
        ]
        return replace(result, completions=tuple(completions))

    async def token_logprobs(
        self, prompt: Prompt, token_ids: Sequence[int]
    ) -> tuple[float, ...]:
        return fake_logprobs(prompt, token_ids, self._bias)

    async def score(
        self, answers: Sequence[tuple[Prompt, str]]
    ) -> list[tuple[float, ...] | Dropped]:
        results: list[tuple[float, ...] | Dropped] = []
        for prompt, text in answers:
            prompt_ids = self._read_prompt(prompt.id, prompt)
            if isinstance(prompt_ids, Dropped):
                results.append(prompt_ids)
            else:
                answer_ids = (*text_ids(text), EOS)
                results.append(await self.token_logprobs(prompt, answer_ids))
        return results

    async def load_weights(
        self, manifest: WeightManifest, tensors: Tensors
    ) -> LoadReport:
        if manifest.checksum != fake_checksum(tensors):
            raise RuntimeError(
                f"version {manifest.version}: the checksum does not fit the tensors"
            )
        self.take(manifest.version, tensors)
        return await self.prove(manifest)

    def take(self, version: int, tensors: Tensors) -> None:
        self._version = version
        self._bias = float(tensors["bias"][0])

    async def prove(self, manifest: WeightManifest) -> LoadReport:
        reading = await self._gate.prove(manifest)
        return LoadReport(manifest.version, reading, 0.0)

    async def calibrate(
        self, probe: LogprobProbe, proven: ProbeReading | None = None
    ) -> ProbeReading:
        return await self._gate.calibrate(probe, proven)

    async def _score_probe(
        self, answers: Sequence[ProbeAnswer]
    ) -> list[AnswerLogprobs | None]:
        scored: list[AnswerLogprobs | None] = []
        for answer in answers:
            logprobs = await self.token_logprobs(answer.prompt, answer.token_ids)
            scored.append(of_tokens(answer.token_ids, logprobs))
        return scored

    async def sleep(self, level: int) -> None:
        self._asleep = True
        if level == 2:
            self._bias = float("nan")

    async def wake(self) -> None:
        self._asleep = False

    async def close(self) -> None:
        return None
