"""Masked == shortened == vLLM for LLaVA-NeXT (AnyRes) and Qwen2.5-VL (three-dimensional positions), float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from actors.bdhs.vision_features import VisionFeatures, by_images, vision_inputs
from benchmarks.masked_forward import (
    grid_positions,
    masked_logits,
    shortened_logits,
    token_logprobs,
    visible_mask,
)
from common.data.images import ImageStore
from common.protocols import GenerationRequest
from common.records import ImageRef, Message, Part, Prompt, RolloutGroup
from tests.actors.engines import EnginePool, Run
from tests.actors.masked_policy import MaskedPolicy
from tests.tiny_families import tiny_llava_next, tiny_qwen
from tests.tiny_models import picture

FAMILIES = {"llava_next": tiny_llava_next, "qwen2_5_vl": tiny_qwen}
ANSWER = "There is a red circle at the top left."
SIZES = {
    "llava_next": [[(64, 64)], [(90, 40)], [(40, 80)], [(64, 64), (40, 80)]],
    "qwen2_5_vl": [[(112, 84)], [(84, 140)], [(57, 60)], [(112, 84), (57, 60)]],
}
"""Images of several shapes, so of several numbers of tokens; the last prompt has two."""
NUM_NEW = 8


class Setup:
    """A tiny random model in Hugging Face, and a prompt for each image size."""

    def __init__(
        self,
        family: str,
        store: ImageStore,
    ) -> None:
        self.directory = FAMILIES[family]()
        self.policy = MaskedPolicy(self.directory)
        self.model = self.policy.model
        self.encoder = self.policy.encoder
        self.answer = self.encoder.encode_response(ANSWER)
        self.prompts = []
        question = Part("text", "Describe the image.")
        for index, sizes in enumerate(SIZES[family]):
            images = []
            for number, size in enumerate(sizes):
                image = picture(index + 10 * number, 160).resize(size)
                images.append(store.add(image))
            parts = (Part("image"),) * len(images)
            message = Message("user", (*parts, question))
            prompt = Prompt(f"prompt-{index}", (message,), tuple(images))
            self.prompts.append(prompt)
        self.encoded = [self.encoder.encode_prompt(prompt) for prompt in self.prompts]

    def visibles(
        self,
        index: int,
    ) -> list[tuple[int, ...]]:
        """Sets of visible image tokens of a prompt, from none to all."""
        num_tokens = self.encoded[index].num_image_tokens
        everything = tuple(range(num_tokens))
        last = (num_tokens - 1,)
        first_and_middle = (0, num_tokens // 2)
        every_third = everything[1::3]
        return [(), last, first_and_middle, every_third, everything]

    def arguments(
        self,
        index: int,
        visible: tuple[int, ...],
    ) -> tuple[Any, ...]:
        return self.policy.arguments(self.encoded[index], self.answer, visible)


@pytest.fixture(scope="module", params=FAMILIES)
def setup(request: pytest.FixtureRequest, store: ImageStore) -> Setup:
    return Setup(request.param, store)


def test_grid_positions_by_hand() -> None:
    """Image token 9 four times, the second and the last visible: a grid of one row at place 1, text goes on at 3."""
    ids = torch.tensor([[1, 9, 9, 9, 9, 5, 6]])
    mask = visible_mask(ids[0].tolist(), 9, (1, 3))
    positions = grid_positions(mask, ids == 9)
    time, height, width = positions[:, mask.bool()]
    assert time.tolist() == [0, 1, 1, 3, 4]
    assert height.tolist() == [0, 1, 1, 3, 4]
    assert width.tolist() == [0, 1, 2, 3, 4]


def test_masked_equals_shortened(setup: Setup) -> None:
    counts = [encoded.num_image_tokens for encoded in setup.encoded]
    assert len(set(counts)) > 1
    assert min(counts) > 3
    effects = []
    for index, encoded in enumerate(setup.encoded):
        num_text_tokens = len(encoded.token_ids) - counts[index]
        num_text_tokens += len(setup.answer)
        logprobs = []
        for visible in setup.visibles(index):
            arguments = setup.arguments(index, visible)
            masked = masked_logits(*arguments).log_softmax(-1)
            shortened = shortened_logits(*arguments).log_softmax(-1)
            assert masked.shape == shortened.shape
            assert len(masked) == num_text_tokens + len(visible)
            assert (masked - shortened).abs().max() < 1e-4
            logprobs.append(token_logprobs(masked, setup.answer))
        effect = logprobs[0] - logprobs[-1]
        effects.append(effect.abs().max())
    assert min(effects) > 1e-2, "the image must matter, or hiding it proves nothing"


def test_nothing_hidden_in_one_row_and_all_hidden_are_the_plain_forwards(
    setup: Setup,
) -> None:
    """LLaVA-NeXT with all tokens visible is the untouched model. Qwen is not: its grid has become one row."""
    encoded = setup.encoded[0]
    answer = setup.answer
    image_token_id = setup.encoder.image_token_id
    sequence = (*encoded.token_ids, *answer)
    ids = torch.tensor([sequence])
    text = [token for token in sequence if token != image_token_id]

    inputs: dict[str, Any] = vision_inputs(encoded.model_inputs)
    # Token types cover the prompt only; the answer needs some as well.
    if "mm_token_type_ids" in encoded.model_inputs:
        inputs["mm_token_type_ids"] = (ids == image_token_id).int()
    with torch.no_grad():
        plain = setup.model(input_ids=ids, **inputs).logits[0]
        # Qwen remembers the positions of the last image.
        setup.model.model.rope_deltas = None
        text_ids = torch.tensor([text])
        text_only = setup.model(input_ids=text_ids).logits[0]

    *_, everything = setup.visibles(0)
    visible_logits = masked_logits(*setup.arguments(0, everything))
    all_visible = token_logprobs(visible_logits, answer)
    hidden_logits = masked_logits(*setup.arguments(0, ()))
    all_hidden = token_logprobs(hidden_logits, answer)
    text_difference = all_hidden - token_logprobs(text_only, answer)
    assert text_difference.abs().max() < 1e-4
    difference = all_visible - token_logprobs(plain, answer)
    largest = difference.abs().max()
    if "qwen" in setup.model.config.model_type:
        assert largest > 1e-3
    else:
        assert largest < 1e-4


def test_features_in_a_batch_are_those_of_each_image_alone(
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch_sizes = []
    model_class = type(setup.model.model)
    encode = model_class.get_image_features

    def counted(*args: Any, **inputs: Any) -> Any:
        output = encode(*args, **inputs)
        batch_sizes.append(len(output.pooler_output))
        return output

    missing = ImageRef("0" * 64, "/nowhere.png")
    # Must be left out without disturbing the others of its batch.
    broken = Prompt("broken", setup.prompts[0].messages, (missing,))
    together = VisionFeatures(setup.encoder, torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(model_class, "get_image_features", counted)
        together.prepare([*setup.prompts, broken, *setup.prompts])
    num_images = sum(len(prompt.images) for prompt in setup.prompts)
    assert sum(batch_sizes) == num_images, "every image once, the broken one not at all"
    # Some images were encoded together.
    assert len(batch_sizes) < len(setup.prompts)

    alone = VisionFeatures(setup.encoder, torch.float32)
    for index, prompt in enumerate(setup.prompts):
        *_, everything = setup.visibles(index)
        expected = torch.cat(alone.visible(prompt, everything))
        in_batch = torch.cat(together.visible(prompt, everything))
        assert expected.abs().max() > 1e-2
        assert (in_batch - expected).abs().max() < 1e-4
        inputs = vision_inputs(setup.encoded[index].model_inputs)
        with torch.no_grad():
            output = setup.model.get_image_features(**inputs)
        # One tensor per image.
        reference = torch.cat(list(output.pooler_output))
        assert (expected - reference).abs().max() < 1e-4


def _request(
    name: str,
    visible: tuple[int, ...] | None = (0,),
) -> GenerationRequest:
    """About an image of this name."""
    prompt = Prompt(name, (), (ImageRef(name, "/none.png"),))
    return GenerationRequest(
        name,
        prompt,
        1,
        1.0,
        4,
        visible_image_tokens=visible,
    )


def test_requests_are_cut_by_the_images_to_be_encoded() -> None:
    """Two at a time: a, b | c, d; whole images (None) and left-out ones (()) need no features."""
    requests = [
        _request("a"),
        _request("a"),
        _request("x", None),
        _request("b"),
        _request("y", ()),
        _request("c"),
        _request("d"),
    ]

    def cut(num_images: int) -> list[str]:
        batches = []
        for batch in by_images(requests, num_images):
            names = [request.id for request in batch]
            batches.append("".join(names))
        return batches

    assert cut(2) == ["aaxby", "cd"]
    assert cut(1) == ["aax", "by", "c", "d"]
    assert list(by_images([])) == []


@pytest.mark.real
def test_the_engine_runs_the_same_function(
    setup: Setup,
    engines: EnginePool,
    run: Run,
) -> None:
    """vLLM's shortened sequences of several lengths and images in one call, greedy, with and without a prefix."""
    engine = engines.get(setup.directory, "stepped")
    prefix = "There is a red"
    requests = []
    whole = []
    for index, prompt in enumerate(setup.prompts):
        whole.append(GenerationRequest(prompt.id, prompt, 1, 0.0, NUM_NEW))
        for number, visible in enumerate(setup.visibles(index)):
            for start in ("", prefix):
                request = GenerationRequest(
                    f"{index}/{number}/{start}",
                    prompt,
                    num_completions=1,
                    temperature=0.0,
                    max_tokens=NUM_NEW,
                    prefix=start,
                    visible_image_tokens=visible,
                )
                requests.append(request)
    groups = run(engine.generate(requests))

    answers = set()
    prefix_ids = setup.encoder.encode_response(prefix)[:-1]
    for request, group in zip(requests, groups, strict=True):
        assert isinstance(group, RolloutGroup), group
        index = setup.prompts.index(request.prompt)
        shown = request.visible_image_tokens
        assert shown is not None
        assert group.num_image_tokens == len(shown)
        (completion,) = group.completions
        answers.add(completion.token_ids)
        assert setup.policy.is_greedy(
            completion.token_ids,
            setup.encoded[index],
            prefix=prefix_ids if request.prefix else (),
            visible=shown,
            num_tokens=NUM_NEW,
        ), request.id
    assert len(answers) > len(requests) // 3, "answers tell inputs apart"

    # Whole images are encoded by vLLM; it counts as many tokens as the processor.
    whole_groups = run(engine.generate(whole))
    for encoded, group in zip(setup.encoded, whole_groups, strict=True):
        assert group.num_image_tokens == encoded.num_image_tokens
