"""Masking image tokens, leaving them out, and the engine's shortened sequence are one function."""

from __future__ import annotations

import pytest
import torch

from benchmarks.masked_forward import (
    masked_logits,
    shortened_embeddings,
    shortened_logits,
    token_logprobs,
    visible_mask,
    visible_positions,
)
from common.chat import EncodedPrompt
from common.data.images import ImageStore
from common.protocols import GenerationRequest
from common.records import Prompt, RolloutGroup
from tests.actors.engines import EnginePool, Run
from tests.actors.masked_policy import MaskedPolicy
from tests.tiny_models import make_prompt, tiny_llava

NUM_IMAGE_TOKENS = 64
ALL = tuple(range(NUM_IMAGE_TOKENS))
VISIBLE: list[tuple[int, ...]] = [
    (),
    (5,),
    (0, 63),
    ALL[::7],
    ALL,
]
ANSWER = "There is a red circle at the top left."
NUM_NEW = 16


class Setup:
    """A tiny random LLaVA in Hugging Face, and one prompt for it."""

    def __init__(self, store: ImageStore) -> None:
        self.policy = MaskedPolicy(tiny_llava())
        self.model = self.policy.model
        self.encoder = self.policy.encoder
        self.prompt: Prompt = make_prompt(store, 3)
        self.encoded: EncodedPrompt = self.encoder.encode_prompt(self.prompt)
        self.answer = self.encoder.encode_response(ANSWER)

    def masked(
        self,
        visible: tuple[int, ...],
    ) -> torch.Tensor:
        """Logits of prompt and answer behind a mask."""
        arguments = self.policy.arguments(self.encoded, self.answer, visible)
        return masked_logits(*arguments)

    def largest_difference(
        self,
        left: torch.Tensor,
        right: torch.Tensor,
    ) -> float:
        """Of the answer's log-probs, in nats."""
        difference = token_logprobs(left, self.answer)
        difference = difference - token_logprobs(right, self.answer)
        return float(difference.abs().max())


@pytest.fixture(scope="module")
def setup(store: ImageStore) -> Setup:
    return Setup(store)


def test_mask_and_positions_by_hand() -> None:
    """Image token 9 four times, the second and the last one visible."""
    mask = visible_mask(
        (1, 9, 9, 9, 9, 5, 6),
        image_token_id=9,
        visible=(1, 3),
    )
    assert mask.tolist() == [[1, 0, 1, 0, 1, 1, 1]]
    assert visible_positions(mask).tolist() == [[0, 0, 1, 1, 2, 3, 4]]


@pytest.mark.parametrize("visible", VISIBLE)
def test_masked_equals_shortened(
    setup: Setup,
    visible: tuple[int, ...],
) -> None:
    masked = setup.masked(visible)
    arguments = setup.policy.arguments(setup.encoded, setup.answer, visible)
    shortened = shortened_logits(*arguments)
    assert masked.shape == shortened.shape
    num_answer = len(setup.answer)
    # Both have logits at the visible places only.
    num_hidden = NUM_IMAGE_TOKENS - len(visible)
    num_prompt = len(setup.encoded.token_ids) - num_hidden
    assert len(masked) == num_prompt + num_answer
    error = masked.log_softmax(-1) - shortened.log_softmax(-1)
    assert error.abs().max() < 1e-4
    by_masked = masked[-num_answer:].argmax(-1)
    by_shortened = shortened[-num_answer:].argmax(-1)
    assert torch.equal(by_masked, by_shortened)


@pytest.mark.parametrize("visible", VISIBLE)
def test_greedy_answers_are_equal(
    setup: Setup,
    visible: tuple[int, ...],
) -> None:
    arguments = setup.policy.arguments(setup.encoded, (), visible)
    embeddings = shortened_embeddings(*arguments)
    generated = setup.model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
        max_new_tokens=NUM_NEW,
        do_sample=False,
        suppress_tokens=list(setup.encoder.media_token_ids),
    )
    answer = tuple(generated[0].tolist())
    assert setup.policy.is_greedy(
        answer,
        setup.encoded,
        prefix=(),
        visible=visible,
        num_tokens=NUM_NEW,
    )


def test_nothing_hidden_is_the_plain_forward_and_all_hidden_is_text_only(
    setup: Setup,
) -> None:
    sequence = (*setup.encoded.token_ids, *setup.answer)
    image_token_id = setup.encoder.image_token_id
    text = [token for token in sequence if token != image_token_id]
    with torch.no_grad():
        plain = setup.model(
            input_ids=torch.tensor([sequence]),
            **setup.encoded.model_inputs,
        ).logits[0]
        text_ids = torch.tensor([text])
        text_only = setup.model(input_ids=text_ids).logits[0]
    all_visible = setup.masked(ALL)
    all_hidden = setup.masked(())
    assert setup.largest_difference(all_visible, plain) < 1e-4
    assert setup.largest_difference(all_hidden, text_only) < 1e-4
    assert setup.largest_difference(all_visible, all_hidden) > 1e-2


def test_default_positions_would_be_another_function(setup: Setup) -> None:
    """Why the position ids are passed: counted over all tokens they change the answer."""
    sequence = [*setup.encoded.token_ids, *setup.answer]
    token_ids = torch.tensor([sequence])
    mask = visible_mask(sequence, setup.encoder.image_token_id, (5,))
    with torch.no_grad():
        counted_over_all = setup.model(
            input_ids=token_ids,
            attention_mask=mask,
            position_ids=torch.arange(token_ids.shape[1])[None],
            **setup.encoded.model_inputs,
        ).logits[0]
    assert setup.largest_difference(counted_over_all, setup.masked((5,))) > 1e-2


@pytest.mark.real
def test_the_engine_runs_the_same_function(
    setup: Setup,
    engines: EnginePool,
    run: Run,
) -> None:
    """vLLM's shortened sequences of several lengths in one call, greedy, with and without a prefix; and rho = 0."""
    engine = engines.get(tiny_llava(), "stepped")
    # None shows the whole image, which vLLM encodes itself.
    prefix = "There is a red"
    requests = []
    for index, visible in enumerate([*VISIBLE, None]):
        for start in ("", prefix):
            request = GenerationRequest(
                f"{index}/{start}",
                setup.prompt,
                num_completions=1,
                temperature=0.0,
                max_tokens=NUM_NEW,
                prefix=start,
                visible_image_tokens=visible,
            )
            requests.append(request)
    groups = run(engine.generate(requests))
    logprobs = run(engine.token_logprobs(setup.prompt, setup.answer))

    prefix_ids = setup.encoder.encode_response(prefix)[:-1]
    for request, group in zip(requests, groups, strict=True):
        assert isinstance(group, RolloutGroup), group
        shown = request.visible_image_tokens
        visible_tokens = ALL if shown is None else tuple(shown)
        assert group.num_image_tokens == len(visible_tokens)
        (completion,) = group.completions
        assert setup.policy.is_greedy(
            completion.token_ids,
            setup.encoded,
            prefix=prefix_ids if request.prefix else (),
            visible=visible_tokens,
            num_tokens=NUM_NEW,
        ), request.id
    expected = token_logprobs(setup.masked(ALL), setup.answer)
    assert (expected - torch.tensor(logprobs)).abs().max() < 1e-4
