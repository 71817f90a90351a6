"""World 2's prompts: what they ask, whose references they carry, what the rules say of answers, and errors by rule."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from common.config import RulesJudge
from common.config.povid import ErrorKind
from common.data.images import ImageStore
from common.records import Completion, Dropped, Prompt
from common.tabletop.claims import compare
from common.tabletop.corrupter import corrupt
from common.tabletop.faults import faults_of
from common.tabletop.prompts import (
    attribute_prompts,
    caption_prompts,
    pope_prompts,
    training_prompts,
    turn_prompts,
)
from common.tabletop.scenes import split_of
from common.tabletop.truth import question_of, scene_of
from common.worlds.truth import MissingTruth

COSTS = RulesJudge(hallucination_cost=1.0, attribute_cost=0.5, miss_cost=0.25)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images"))


def cost(prompt: Prompt, text: str, finish: str = "stop") -> float:
    completion = Completion((1,), text, 0, 0, finish)  # type: ignore[arg-type]
    return sum(cost for _, cost in faults_of(prompt, completion, COSTS))


def test_training_prompts_ask_for_everything(store: ImageStore) -> None:
    prompts = training_prompts(300, 0, store)
    abouts = Counter(question_of(prompt).about for prompt in prompts)
    assert set(abouts) == {"caption", "yes_no", "colour", "place", "number"}
    assert any(len(prompt.messages) > 1 for prompt in prompts)
    for prompt in prompts:
        assert split_of(scene_of(prompt)) == "train"
        assert [message.role for message in prompt.messages][::2] == ["user"] * (
            (len(prompt.messages) + 1) // 2
        )


def test_prompts_about_some_things_are_those_of_all(store: ImageStore) -> None:
    """Each as it is among all prompts, and as many as are asked for."""
    prompts = training_prompts(60, 0, store)
    asked = ("yes_no", "colour")
    wanted = [prompt for prompt in prompts if question_of(prompt).about in asked]
    assert 0 < len(wanted) < 60
    assert training_prompts(len(wanted), 0, store, about=asked) == wanted
    assert len(training_prompts(60, 0, store, about=asked)) == 60


def test_equal_seeds_give_equal_prompts(store: ImageStore) -> None:
    assert training_prompts(20, 3, store) == training_prompts(20, 3, store)
    assert training_prompts(20, 3, store) != training_prompts(20, 4, store)


def test_references_are_the_training_text_unless_clean_ones_are_asked_for(
    store: ImageStore,
) -> None:
    """The same questions of the same pictures; a few answers of the training text have slips."""
    as_trained = training_prompts(600, 0, store)
    clean = training_prompts(600, 0, store, "clean")
    num_other = 0
    for slipped, true in zip(as_trained, clean, strict=True):
        assert slipped.messages[-1] == true.messages[-1]
        assert slipped.images == true.images
        assert cost(true, true.reference or "") == 0
        num_other += slipped.reference != true.reference
    assert 0 < num_other < 30


def test_evaluation_prompts_are_true_and_of_the_split(store: ImageStore) -> None:
    prompts = caption_prompts("test", 20, 0, store)
    prompts += pope_prompts("test", 20, 0, store)
    prompts += attribute_prompts("test", 20, 0, store)
    prompts += turn_prompts("test", 20, 0, store)
    assert (
        len({prompt.id for prompt in prompts}) == len(prompts) == 20 * (1 + 6 + 3 + 1)
    )
    for prompt in prompts:
        assert split_of(scene_of(prompt)) == "test"
        assert cost(prompt, prompt.reference or "") == 0


def test_what_wrong_answers_cost(store: ImageStore) -> None:
    """By hand: a made-up thing 1, a wrong part 0.5, a missed thing 0.25, silence or a cut 1 more."""
    caption = caption_prompts("test", 1, 0, store)[0]
    scene = scene_of(caption)
    text = caption.reference or ""
    absent = next(
        kind
        for kind in ("cup", "fork", "book", "lamp", "bowl", "apple")
        if kind not in scene.kinds
    )
    assert cost(caption, f"{text} A red {absent} is at the top.") == 1
    assert cost(caption, text, finish="length") == 1
    assert cost(caption, "") == 1 + 0.25 * len(scene.things)
    yes, no = pope_prompts("test", 1, 0, store)[:2]
    assert cost(yes, "No, there is none.") == 0.25
    assert cost(no, "Yes, there is a red cup.") == 1
    assert cost(yes, "Perhaps.") == 1.25
    colour, place, number = attribute_prompts("test", 1, 0, store)
    assert cost(colour, "It is at the top.") == 1.25
    wrong = "one" if "three" in (number.reference or "") else "three"
    assert cost(number, f"There are {wrong}.") == 0.5
    assert cost(place, place.reference or "") == 0


def test_a_prompt_of_another_world_cannot_be_judged() -> None:
    with pytest.raises(MissingTruth, match="expected a tabletop scene"):
        cost(Prompt("p", (), (), truth={"answer": "yes"}), "Yes.")


@pytest.mark.parametrize("kind", ["entity", "attribute", "relation"])
def test_corrupted_captions_have_the_error_that_was_asked_for(
    kind: ErrorKind, store: ImageStore
) -> None:
    for prompt in caption_prompts("test", 40, 1, store):
        text = corrupt(prompt, kind, 0)
        assert isinstance(text, str)
        claims = compare(text, scene_of(prompt)).claims
        made_up = [claim for claim in claims if claim.thing is None]
        wrong = [part for claim in claims for part in claim.wrong]
        if kind == "entity":
            assert len(made_up) == 1
        elif kind == "attribute":
            assert not made_up
            assert wrong in (["colour"], ["number"])
        else:
            assert not made_up
            assert set(wrong) <= {"place", "relation"}
        assert cost(prompt, text) > 0


def test_answers_are_corrupted_by_reasoning_alone(store: ImageStore) -> None:
    prompts = pope_prompts("test", 20, 1, store) + attribute_prompts(
        "test", 20, 1, store
    )
    for prompt in prompts:
        text = corrupt(prompt, "reasoning", 0)
        assert isinstance(text, str)
        assert cost(prompt, text) > 0
        unsuited = corrupt(prompt, "entity", 0)
        assert isinstance(unsuited, Dropped)
        assert unsuited.reason == "kind_unsuited"


def test_a_reference_with_a_slip_is_not_corrupted(
    store: ImageStore, tmp_path: Path
) -> None:
    prompt = caption_prompts("test", 1, 0, store)[0]
    slipped = Prompt(
        prompt.id, prompt.messages, prompt.images, "A table.", prompt.truth
    )
    dropped = corrupt(slipped, "attribute", 0)
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "not_true"
