"""Masked == shortened == vLLM for LLaVA-NeXT (AnyRes) and Qwen2.5-VL (three-dimensional positions), float32."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from actors.vision_features import VisionFeatures, by_images
from benchmarks.masked_forward import (
    grid_positions,
    masked_logits,
    shortened_logits,
    token_logprobs,
    visible_mask,
)
from common.chat import ChatEncoder, EncodedPrompt
from common.config import Model, Rollout
from common.images import ImageStore
from common.protocols import GenerationRequest
from common.records import ImageRef, Message, Part, Prompt, RolloutGroup
from tests.tiny_families import tiny_llava_next, tiny_qwen
from tests.tiny_models import picture

FAMILIES = {"llava_next": tiny_llava_next, "qwen2_5_vl": tiny_qwen}
ANSWER = "There is a red circle at the top left."
SIZES = {
    "llava_next": [(64, 64), (90, 40), (40, 80)],
    "qwen2_5_vl": [(112, 84), (84, 140), (57, 60)],
}
"""Images of several shapes, so of several numbers of tokens."""


class Setup:
    """A tiny random model in Hugging Face, and a prompt for each image size."""

    def __init__(self, family: str, folder: Path) -> None:
        self.directory = FAMILIES[family]()
        self.encoder = ChatEncoder(self.directory, 512)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            self.directory, dtype=torch.float32
        ).eval()
        store = ImageStore(folder)
        message = Message("user", (Part("image"), Part("text", "Describe the image.")))
        self.prompts = [
            Prompt(
                f"prompt-{i}", (message,), (store.add(picture(i, 160).resize(size)),)
            )
            for i, size in enumerate(SIZES[family])
        ]
        self.encoded: list[EncodedPrompt] = [
            self.encoder.encode_prompt(prompt) for prompt in self.prompts
        ]
        self.answer = self.encoder.encode_response(ANSWER)

    def visibles(self, index: int) -> list[tuple[int, ...]]:
        count = self.encoded[index].num_image_tokens
        return [
            (),
            (count - 1,),
            (0, count // 2),
            tuple(range(1, count, 3)),
            tuple(range(count)),
        ]

    def arguments(
        self, index: int, visible: tuple[int, ...], response: tuple[int, ...]
    ) -> tuple[Any, ...]:
        return (
            self.model,
            self.encoded[index],
            response,
            visible,
            self.encoder.image_token_id,
        )

    def greedy(
        self,
        index: int,
        visible: tuple[int, ...],
        prefix: tuple[int, ...],
        num_tokens: int,
    ) -> tuple[int, ...]:
        found: tuple[int, ...] = ()
        while len(found) < num_tokens and found[-1:] != (self.encoder.eos_token_id,):
            logits = masked_logits(*self.arguments(index, visible, prefix + found))[-1]
            logits[list(self.encoder.media_token_ids)] = -torch.inf
            found += (int(logits.argmax()),)
        return found


@pytest.fixture(scope="module", params=FAMILIES)
def setup(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Setup:
    return Setup(request.param, tmp_path_factory.mktemp("images"))


def test_grid_positions_by_hand() -> None:
    """Image token 9 four times, the second and the last visible: a grid of one row at place 1, text goes on at 3."""
    ids = torch.tensor([[1, 9, 9, 9, 9, 5, 6]])
    mask = visible_mask(ids[0].tolist(), 9, (1, 3))
    time, height, width = grid_positions(mask, ids == 9)[:, mask.bool()]
    assert time.tolist() == height.tolist() == [0, 1, 1, 3, 4]
    assert width.tolist() == [0, 1, 2, 3, 4]


def test_masked_equals_shortened(setup: Setup) -> None:
    counts = [encoded.num_image_tokens for encoded in setup.encoded]
    assert len(set(counts)) > 1 and min(counts) > 3
    spread = []
    for index in range(len(counts)):
        last = []
        for visible in setup.visibles(index):
            arguments = setup.arguments(index, visible, setup.answer)
            masked, shortened = (
                logits(*arguments).log_softmax(-1)
                for logits in (masked_logits, shortened_logits)
            )
            assert masked.shape == shortened.shape
            assert len(masked) == len(setup.encoded[index].token_ids) - counts[
                index
            ] + len(visible) + len(setup.answer)
            assert (masked - shortened).abs().max() < 1e-4
            last.append(token_logprobs(masked, setup.answer))
        spread.append((last[0] - last[-1]).abs().max())
    assert min(spread) > 1e-2, "the image must matter, or hiding it proves nothing"


def test_nothing_hidden_in_one_row_and_all_hidden_are_the_plain_forwards(
    setup: Setup,
) -> None:
    """LLaVA-NeXT with all tokens visible is the untouched model. Qwen is not: its grid has become one row."""
    encoded, answer, image = (
        setup.encoded[0],
        setup.answer,
        setup.encoder.image_token_id,
    )
    inputs = {
        name: value
        for name, value in encoded.model_inputs.items()
        if name != "mm_token_type_ids"
    }
    ids = torch.tensor([(*encoded.token_ids, *answer)])
    if "mm_token_type_ids" in encoded.model_inputs:
        inputs["mm_token_type_ids"] = (ids == image).int()
    with torch.no_grad():
        plain = setup.model(input_ids=ids, **inputs).logits[0]
        text = torch.tensor([[token for token in ids[0].tolist() if token != image]])
        setup.model.model.rope_deltas = None  # Qwen remembers the last image's
        alone = setup.model(input_ids=text).logits[0]
    full = masked_logits(
        *setup.arguments(0, tuple(range(encoded.num_image_tokens)), answer)
    )
    none = masked_logits(*setup.arguments(0, (), answer))
    assert (
        token_logprobs(none, answer) - token_logprobs(alone, answer)
    ).abs().max() < 1e-4
    error = (token_logprobs(full, answer) - token_logprobs(plain, answer)).abs().max()
    assert error > 1e-3 if "qwen" in setup.model.config.model_type else error < 1e-4


def test_features_in_a_batch_are_those_of_each_image_alone(setup: Setup) -> None:
    together, alone = (VisionFeatures(setup.encoder, torch.float32) for _ in range(2))
    sizes: list[int] = []
    encode = together._encode_batch
    together._encode_batch = lambda batch: (sizes.append(len(batch)), encode(batch))[1]  # type: ignore[method-assign]
    broken = Prompt(
        "broken", setup.prompts[0].messages, (ImageRef("0" * 64, "/nowhere.png"),)
    )
    together.prepare([*setup.prompts, broken, *setup.prompts])
    for index, prompt in enumerate(setup.prompts):
        everything = tuple(range(setup.encoded[index].num_image_tokens))
        found, expected = (
            together.visible(prompt, everything),
            alone.visible(prompt, everything),
        )
        assert (found - expected).abs().max() < 1e-4 and expected.abs().max() > 1e-2
        with torch.no_grad():
            inputs = {
                n: x
                for n, x in setup.encoded[index].model_inputs.items()
                if n != "mm_token_type_ids"
            }
            reference = torch.cat(
                list(setup.model.get_image_features(**inputs).pooler_output)
            )
        assert (expected - reference).abs().max() < 1e-4
    assert sum(sizes) == len(setup.prompts), (
        "every image once, the broken one not at all"
    )
    assert len(sizes) < len(setup.prompts)


def test_requests_are_cut_by_the_images_to_be_encoded() -> None:
    """Two at a time: a, b | c, d; whole images (None) and left-out ones (()) need no features."""

    def request(name: str, visible: tuple[int, ...] | None = (0,)) -> GenerationRequest:
        prompt = Prompt(name, (), (ImageRef(name, "/none.png"),))
        return GenerationRequest(name, prompt, 1, 1.0, 4, visible_image_tokens=visible)

    asked = [
        request("a"),
        request("a"),
        request("x", None),
        request("b"),
        request("y", ()),
        request("c"),
        request("d"),
    ]
    cut = list(by_images(asked, 2))
    assert [[one.id for one in batch] for batch in cut] == [
        ["a", "a", "x", "b", "y"],
        ["c", "d"],
    ]
    assert [[one.id for one in batch] for batch in by_images(asked, 1)] == [
        ["a", "a", "x"],
        ["b", "y"],
        ["c"],
        ["d"],
    ]
    assert list(by_images([])) == []


@pytest.mark.real
def test_the_engine_runs_the_same_function(setup: Setup) -> None:
    """vLLM's shortened sequences of several lengths and images in one call, greedy, with and without a prefix."""
    from actors.engines import make_engine

    prefix, num_tokens = "There is a red", 8
    requests = [
        GenerationRequest(
            f"{index}/{n}/{start}",
            prompt,
            1,
            0.0,
            num_tokens,
            prefix=start,
            visible_image_tokens=visible,
        )
        for index, prompt in enumerate(setup.prompts)
        for n, visible in enumerate(setup.visibles(index))
        for start in ("", prefix)
    ]

    async def ask() -> list[Any]:
        engine = make_engine(
            Model(path=str(setup.directory)), Rollout(deterministic=True)
        )
        try:
            whole = [
                GenerationRequest(prompt.id, prompt, 1, 0.0, num_tokens)
                for prompt in setup.prompts
            ]
            return [await engine.generate(requests), await engine.generate(whole)]
        finally:
            await engine.close()

    groups, whole = asyncio.run(ask())
    prefix_ids = setup.encoder.encode_response(prefix)[:-1]
    assert (
        len({group.completions[0].token_ids for group in groups}) > len(requests) // 3
    ), "answers tell inputs apart"
    for request, group in zip(requests, groups, strict=True):
        assert isinstance(group, RolloutGroup), group
        index = setup.prompts.index(request.prompt)
        visible = request.visible_image_tokens
        assert visible is not None and group.num_image_tokens == len(visible)
        expected = setup.greedy(
            index, visible, prefix_ids if request.prefix else (), num_tokens
        )
        assert group.completions[0].token_ids == expected, request.id
    assert [group.num_image_tokens for group in whole] == [
        one.num_image_tokens for one in setup.encoded
    ]
