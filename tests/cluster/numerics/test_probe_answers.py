"""Which answers learner and engines compare."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.numerics.probe_answers import probe_answers
from cluster.runtime.clients import RolloutClient
from common.chat import ChatEncoder
from common.config import Loop
from common.data.images import ImageStore
from common.errors import UserError
from common.protocols import GenerationRequest
from common.records import Completion, Dropped, ProbeAnswer, Prompt, RolloutGroup
from tests.fakes.runtime import LocalHandle
from tests.tiny_families import tiny_qwen
from tests.tiny_models import make_prompt, tiny_llava


class Sampler:
    """Answers every prompt with its length limit's number of tokens; refuses the ids of `refused`."""

    def __init__(self, refused: Sequence[str] = ()) -> None:
        self.asked: list[GenerationRequest] = []
        self._refused = refused

    async def generate(
        self, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        self.asked += requests
        groups: list[RolloutGroup | Dropped] = []
        for request in requests:
            if request.id in self._refused:
                groups.append(Dropped(request.id, "processor", "no"))
                continue
            tokens = tuple(range(20, 20 + request.max_tokens))
            answer = Completion(tokens, "", 0, 0, "length")
            groups.append(RolloutGroup(request.id, request.prompt, (), 0, (answer,)))
        return groups


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(tiny_llava(), 256)


def chosen(
    encoder: ChatEncoder,
    *prompt_sets: Sequence[Prompt],
    sampler: Sampler | None = None,
    **loop: Any,
) -> list[ProbeAnswer]:
    engine = RolloutClient(LocalHandle(sampler or Sampler()), 5.0)
    settings = Loop.model_validate(loop)
    return asyncio.run(probe_answers(settings, encoder, prompt_sets, engine))


def with_reference(prompt: Prompt, text: str | None) -> Prompt:
    return Prompt(prompt.id, prompt.messages, prompt.images, reference=text)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path)


@pytest.fixture
def prompts(store: ImageStore) -> list[Prompt]:
    return [make_prompt(store, seed) for seed in range(20)]


def test_references_where_there_are_some_else_greedy_answers(
    encoder: ChatEncoder, prompts: list[Prompt]
) -> None:
    text = "There is a red circle at the top."
    mixed = [
        with_reference(prompt, text if index % 2 else None)
        for index, prompt in enumerate(prompts)
    ]
    sampler = Sampler()
    answers = chosen(encoder, mixed, sampler=sampler, probe_answers=6, probe_tokens=4)
    assert len(answers) == 6
    reference = encoder.encode_response(text)[:4]
    for answer in answers:
        expected = reference if answer.prompt.reference else (20, 21, 22, 23)
        assert answer.token_ids == expected
    assert sampler.asked
    assert all(request.temperature == 0 for request in sampler.asked)
    assert all(request.prompt.reference is None for request in sampler.asked)


def test_all_sizes_of_pictures_are_seen(store: ImageStore) -> None:
    """Eight small pictures come first; the two larger ones are among the four that are taken all the same."""
    qwen = ChatEncoder(tiny_qwen(), 512)
    sides = (56, 56, 56, 56, 56, 56, 56, 56, 112, 168)
    prompts = [make_prompt(store, seed, side=side) for seed, side in enumerate(sides)]
    answers = chosen(qwen, prompts, probe_answers=4)
    tokens = Counter(
        qwen.encode_prompt(answer.prompt).num_image_tokens for answer in answers
    )
    assert len(tokens) == 3
    assert tokens.total() == 4


def test_the_first_set_counts_where_it_has_enough(
    encoder: ChatEncoder, prompts: list[Prompt]
) -> None:
    validation, training = prompts[:8], prompts[8:]
    answers = chosen(encoder, validation, training, probe_answers=4)
    assert {answer.prompt.id for answer in answers} <= {p.id for p in validation}
    answers = chosen(encoder, validation[:1], training, probe_answers=4)
    ids = [answer.prompt.id for answer in answers]
    assert ids[0] == validation[0].id
    assert len(ids) == 4


def test_a_set_that_lies_sorted_is_seen_from_end_to_end(
    encoder: ChatEncoder, store: ImageStore
) -> None:
    prompt = make_prompt(store, 1)
    sorted_set = []
    for index in range(640):
        text = "captions" if index < 320 else "questions"
        sorted_set.append(Prompt(f"{text}-{index}", prompt.messages, prompt.images))
    answers = chosen(encoder, sorted_set, probe_answers=16)
    kinds = Counter(answer.prompt.id.partition("-")[0] for answer in answers)
    assert kinds["captions"] > 0
    assert kinds["questions"] > 0


def test_an_answer_fits_behind_its_prompt(
    encoder: ChatEncoder, prompts: list[Prompt]
) -> None:
    length = len(encoder.encode_prompt(prompts[0]).token_ids)
    tight = ChatEncoder(tiny_llava(), length + 3)
    (answer,) = chosen(tight, prompts[:1], probe_tokens=32)
    assert len(answer.token_ids) == 3


def test_rows_that_cannot_be_used_are_passed_over(
    encoder: ChatEncoder, prompts: list[Prompt], store: ImageStore
) -> None:
    for prompt in prompts[:5]:
        Path(prompt.images[0].path).unlink()
    answers = chosen(encoder, prompts, probe_answers=16)
    assert len(answers) == 15
    for prompt in prompts[5:]:
        Path(prompt.images[0].path).unlink()
    with pytest.raises(UserError, match=r"got none of 20; .*image_missing"):
        chosen(encoder, prompts)


def test_a_prompt_that_no_engine_answers_has_an_answer_all_the_same(
    encoder: ChatEncoder, prompts: list[Prompt]
) -> None:
    sampler = Sampler([prompt.id for prompt in prompts])
    answers = chosen(encoder, prompts, sampler=sampler, probe_answers=2)
    assert {answer.token_ids for answer in answers} == {encoder.encode_response("yes")}
