"""The eye of engines, over fakes: order, sharing of pictures, and scoring calls that are put together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from common import config
from common.data.images import ImageStore
from common.errors import UserError
from common.protocols import Question
from common.records import Dropped, Message, Part, Prompt
from reward.eyes.engine_eye import EngineEye
from tests.fakes.rollout import FakeRolloutWorker
from tests.tiny_models import make_prompt

CONFIG = config.RunConfig(mixture=config.Mixture(online_fraction=1.0))


class CountingEngine(FakeRolloutWorker):
    """Counts its calls, and takes a while over each."""

    def __init__(self) -> None:
        super().__init__(CONFIG, 0)
        self.scored: list[int] = []
        self.generated: list[str] = []

    async def generate(self, requests: Sequence[Any]) -> Any:
        self.generated += [request.prompt.id for request in requests]
        return await super().generate(list(requests))

    async def score(self, answers: Sequence[Any]) -> Any:
        self.scored.append(len(answers))
        await asyncio.sleep(0.01)
        return await super().score(list(answers))


@pytest.fixture
def prompts(tmp_path: Any) -> list[Prompt]:
    store = ImageStore(tmp_path)
    return [make_prompt(store, seed) for seed in range(4)]


def test_replies_come_in_the_order_of_the_questions(prompts: list[Prompt]) -> None:
    engine = CountingEngine()
    questions = [
        Question(prompts[0], ("x", "y")),
        Question(prompts[1]),
        Question(prompts[2], ("y", "x")),
        Question(prompts[0]),
    ]
    replies = asyncio.run(EngineEye([engine]).ask(questions))
    assert [bool(getattr(reply, "text", "")) for reply in replies] == [
        False,
        True,
        False,
        True,
    ]
    expected = asyncio.run(engine.engine.score([(prompts[0], "x")]))
    # The first token tells the two options apart; what follows is none of ours.
    assert replies[0].logprobs[0] == expected[0][0]  # type: ignore[union-attr, index]


def test_a_picture_goes_to_one_engine_and_pictures_are_shared_out(
    prompts: list[Prompt],
) -> None:
    engines = [CountingEngine(), CountingEngine()]
    questions = [Question(prompt) for prompt in prompts for _ in range(3)]
    asyncio.run(EngineEye(engines).ask(questions))
    one, other = (set(engine.generated) for engine in engines)
    assert len(one) == len(other) == 2 and not one & other


def test_what_waits_is_scored_together(prompts: list[Prompt]) -> None:
    engine = CountingEngine()

    async def ask_all() -> None:
        eye = EngineEye([engine])
        asked = [eye.ask([Question(prompt, ("x", "y"))]) for prompt in prompts]
        await asyncio.gather(*asked)

    asyncio.run(ask_all())
    assert sum(engine.scored) == 8
    assert len(engine.scored) <= 2


def test_a_refused_question_is_a_reason_and_a_failed_call_fails_its_callers_only(
    prompts: list[Prompt],
) -> None:
    no_picture = Prompt("lost", (Message("user", (Part("image"),)),), ())
    engine = CountingEngine()
    questions = [Question(no_picture, ("x", "y")), Question(prompts[0], ("x", "y"))]
    dropped, reply = asyncio.run(EngineEye([engine]).ask(questions))
    assert isinstance(dropped, Dropped) and dropped.reason == "image_count"
    assert not isinstance(reply, Dropped)


def test_options_that_look_alike_to_the_tokenizer_are_refused(
    prompts: list[Prompt],
) -> None:
    eye = EngineEye([CountingEngine()])
    with pytest.raises(UserError, match="tells apart"):
        asyncio.run(eye.ask([Question(prompts[0], ("x", "x"))]))


class LostEngine(CountingEngine):
    """Answers nothing, until it is well again."""

    is_well = False

    async def generate(self, requests: Sequence[Any]) -> Any:
        answer = await super().generate(requests)
        if self.is_well:
            return answer
        raise RuntimeError("its process is gone")


def test_what_a_lost_engine_does_not_answer_is_asked_of_the_others(
    prompts: list[Prompt],
) -> None:
    """The lost one is asked at first, then only when all others fail."""
    lost, other = LostEngine(), CountingEngine()
    eye = EngineEye([lost, other])
    questions = [Question(prompt) for prompt in prompts]
    replies = asyncio.run(eye.ask(questions))
    expected = asyncio.run(EngineEye([CountingEngine()]).ask(questions))
    assert replies == expected
    num_asked = len(lost.generated)
    assert num_asked >= 1
    assert asyncio.run(eye.ask(questions)) == expected
    assert len(lost.generated) == num_asked


def test_an_engine_that_is_well_again_is_asked_again(prompts: list[Prompt]) -> None:
    lost, other = LostEngine(), LostEngine()
    eye = EngineEye([lost, other])
    with pytest.raises(RuntimeError, match="its process is gone"):
        asyncio.run(eye.ask([Question(prompts[0])]))
    lost.is_well = other.is_well = True
    lost.generated.clear()
    other.generated.clear()
    asyncio.run(eye.ask([Question(prompt) for prompt in prompts]))
    assert lost.generated and other.generated
