"""Masking image tokens, leaving them out, and the engine's shortened sequence are one function."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from benchmarks.masked_forward import (
    masked_logits,
    shortened_embeddings,
    shortened_logits,
    token_logprobs,
    visible_mask,
    visible_positions,
)
from common.chat import ChatEncoder, EncodedPrompt
from common.config import Model, Rollout
from common.images import ImageStore
from common.protocols import GenerationRequest
from common.records import Prompt, RolloutGroup
from tests.tiny_models import TinyLlava, make_prompt, tiny_llava

RECIPE = TinyLlava()
VISIBLE = [(), (5,), (0, 63), tuple(range(0, 64, 7)), tuple(range(64))]
ANSWER = "There is a red circle at the top left."
NUM_NEW = 16


class Setup:
    """A tiny random LLaVA in Hugging Face, and one prompt for it."""

    def __init__(self, folder: Path) -> None:
        self.directory = tiny_llava(RECIPE)
        self.encoder = ChatEncoder(self.directory, 512)
        self.model: Any = LlavaForConditionalGeneration.from_pretrained(
            self.directory, dtype=torch.float32
        ).eval()
        self.prompt: Prompt = make_prompt(ImageStore(folder), 3)
        self.encoded: EncodedPrompt = self.encoder.encode_prompt(self.prompt)
        self.answer = self.encoder.encode_response(ANSWER)

    def arguments(
        self, visible: tuple[int, ...], response: tuple[int, ...]
    ) -> tuple[Any, ...]:
        return self.model, self.encoded, response, visible, self.encoder.image_token_id

    def greedy(
        self, visible: tuple[int, ...], prefix: tuple[int, ...] = ()
    ) -> tuple[int, ...]:
        """Greedy continuation of the masked input, media tokens banned, one forward per token."""
        found: tuple[int, ...] = ()
        while len(found) < NUM_NEW and found[-1:] != (self.encoder.eos_token_id,):
            logits = masked_logits(*self.arguments(visible, prefix + found))[-1]
            logits[list(self.encoder.media_token_ids)] = -torch.inf
            found += (int(logits.argmax()),)
        return found


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(tmp_path_factory.mktemp("images"))


def test_mask_and_positions_by_hand() -> None:
    """Image token 9 four times, the second and the last one visible."""
    mask = visible_mask((1, 9, 9, 9, 9, 5, 6), image_token_id=9, visible=(1, 3))
    assert mask.tolist() == [[1, 0, 1, 0, 1, 1, 1]]
    assert visible_positions(mask).tolist() == [[0, 0, 1, 1, 2, 3, 4]]


@pytest.mark.parametrize("visible", VISIBLE)
def test_masked_equals_shortened(setup: Setup, visible: tuple[int, ...]) -> None:
    arguments = setup.arguments(visible, setup.answer)
    masked, shortened = masked_logits(*arguments), shortened_logits(*arguments)
    assert masked.shape == shortened.shape
    assert len(masked) == len(setup.encoded.token_ids) - 64 + len(visible) + len(
        setup.answer
    )
    error = (masked.log_softmax(-1) - shortened.log_softmax(-1)).abs().max()
    assert error < 1e-4
    assert torch.equal(
        masked[-len(setup.answer) :].argmax(-1),
        shortened[-len(setup.answer) :].argmax(-1),
    )


@pytest.mark.parametrize("visible", VISIBLE)
def test_greedy_answers_are_equal(setup: Setup, visible: tuple[int, ...]) -> None:
    embeddings = shortened_embeddings(*setup.arguments(visible, ()))
    banned = list(setup.encoder.media_token_ids)
    generated = setup.model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
        max_new_tokens=NUM_NEW,
        do_sample=False,
        suppress_tokens=banned,
    )
    assert tuple(generated[0].tolist()) == setup.greedy(visible)


def test_nothing_hidden_is_the_plain_forward_and_all_hidden_is_text_only(
    setup: Setup,
) -> None:
    encoded, answer, image = setup.encoded, setup.answer, setup.encoder.image_token_id
    with torch.no_grad():
        plain = setup.model(
            input_ids=torch.tensor([(*encoded.token_ids, *answer)]),
            **encoded.model_inputs,
        ).logits[0]
        text = [token for token in (*encoded.token_ids, *answer) if token != image]
        alone = setup.model(input_ids=torch.tensor([text])).logits[0]
    full = masked_logits(*setup.arguments(tuple(range(64)), answer))
    none = masked_logits(*setup.arguments((), answer))
    assert (
        token_logprobs(full, answer) - token_logprobs(plain, answer)
    ).abs().max() < 1e-4
    assert (
        token_logprobs(none, answer) - token_logprobs(alone, answer)
    ).abs().max() < 1e-4
    assert (
        token_logprobs(full, answer) - token_logprobs(none, answer)
    ).abs().max() > 1e-2


def test_default_positions_would_be_another_function(setup: Setup) -> None:
    """Why the position ids are passed: counted over all tokens they change the answer."""
    token_ids = torch.tensor([(*setup.encoded.token_ids, *setup.answer)])
    mask = visible_mask(token_ids[0].tolist(), setup.encoder.image_token_id, (5,))
    with torch.no_grad():
        wrong = setup.model(
            input_ids=token_ids,
            attention_mask=mask,
            position_ids=torch.arange(token_ids.shape[1])[None],
            **setup.encoded.model_inputs,
        ).logits[0]
    right = masked_logits(*setup.arguments((5,), setup.answer))
    assert (
        token_logprobs(wrong, setup.answer) - token_logprobs(right, setup.answer)
    ).abs().max() > 1e-2


@pytest.mark.real
def test_the_engine_runs_the_same_function(setup: Setup) -> None:
    """vLLM's shortened sequences of several lengths in one call, greedy, with and without a prefix; and rho = 0."""
    from actors.engines import make_engine

    prefix = "There is a red"
    requests = [
        GenerationRequest(
            f"{index}/{start}",
            setup.prompt,
            1,
            0.0,
            NUM_NEW,
            prefix=start,
            visible_image_tokens=visible,
        )
        for index, visible in enumerate([*VISIBLE, None])
        for start in ("", prefix)
    ]

    async def ask() -> tuple[list[Any], tuple[float, ...]]:
        engine = make_engine(
            Model(path=str(setup.directory)), Rollout(deterministic=True)
        )
        try:
            found = await engine.generate(requests)
            return found, await engine.token_logprobs(setup.prompt, setup.answer)
        finally:
            await engine.close()

    groups, logprobs = asyncio.run(ask())
    prefix_ids = setup.encoder.encode_response(prefix)[:-1]
    for request, group in zip(requests, groups, strict=True):
        assert isinstance(group, RolloutGroup), group
        visible = (
            tuple(range(64))
            if request.visible_image_tokens is None
            else request.visible_image_tokens
        )
        expected = setup.greedy(visible, prefix_ids if request.prefix else ())
        assert group.completions[0].token_ids == expected, request.id
        assert group.num_image_tokens == len(visible)
    full = token_logprobs(
        masked_logits(*setup.arguments(tuple(range(64)), setup.answer)), setup.answer
    )
    assert (full - torch.tensor(logprobs)).abs().max() < 1e-4
