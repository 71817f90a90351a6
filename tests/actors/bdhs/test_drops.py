"""Which prompts BDHS makes no pair of, and why; with a scripted policy."""

from __future__ import annotations

import pytest

from common.config.bdhs import BdhsConfig
from common.errors import UserError
from common.protocols import GenerationRequest
from common.records import (
    Dropped,
    PreferencePair,
    Prompt,
)
from tests.actors.bdhs.scripted_policy import (
    TRUTH,
    Answer,
    a_dog,
    drop_of,
    make_prompt,
    outcomes,
    rest_of_sentence,
    seeded,
)


# Line breaks at the end do not make another answer.
def repeat_the_truth(request: GenerationRequest) -> str:
    return rest_of_sentence(request) if request.stop else TRUTH + "\n"


def drop_it(request: GenerationRequest) -> Dropped:
    return Dropped(request.id, "prompt_too_long")


@pytest.mark.parametrize(
    ("reason", "answer", "max_attempts", "attempts"),
    [
        ("identical", repeat_the_truth, 5, 5),
        ("cut_off", lambda request: " and on and on…", 5, 5),
        ("prompt_too_long", drop_it, 5, 1),
        ("empty", lambda request: "", 1, 1),
    ],
)
def test_drops_are_counted(
    reason: str,
    answer: Answer,
    max_attempts: int,
    attempts: int,
) -> None:
    config = BdhsConfig(max_attempts=max_attempts)
    by_id, _ = outcomes([make_prompt()], answer, config)
    dropped = drop_of(by_id["p"])
    assert (dropped.id, dropped.reason) == ("p", reason)
    assert by_id["p"].attempts == attempts


def test_prompts_that_cannot_be_used_are_refused_without_a_request() -> None:
    prompts = [
        make_prompt("a", None),
        make_prompt("b", " "),
        make_prompt("c", num_images=0),
        make_prompt("e", "A cat. " * 1_500_000),
    ]
    by_id, calls = outcomes(prompts, seeded, BdhsConfig())
    assert calls == []
    assert drop_of(by_id["a"]).reason == "no_reference"
    assert drop_of(by_id["b"]).reason == "no_reference"
    assert drop_of(by_id["c"]).reason == "image_count"
    assert drop_of(by_id["e"]).reason == "answer_too_long"
    # The reason must not repeat ten million characters.
    assert len(drop_of(by_id["e"]).detail) < 100


@pytest.mark.parametrize(
    ("yes_no", "used"),
    [
        ("both", {"caption", "nobody", "yes", "no"}),
        ("no", {"caption", "nobody", "no"}),
        ("neither", {"caption", "nobody"}),
    ],
)
def test_true_answers_to_yes_no_questions_can_be_left_out(
    yes_no: str, used: set[str]
) -> None:
    references = {
        "caption": "A cat sits here.",
        "nobody": "Nobody is there.",
        "yes": "Yes, there is a cat.",
        "no": " no, there is none.",
    }
    prompts = [make_prompt(id, reference) for id, reference in references.items()]
    config = BdhsConfig.model_validate({"yes_no": yes_no})
    by_id, calls = outcomes(prompts, a_dog, config)
    asked = {request.prompt.id for call in calls for request in call}
    assert asked == used
    for id in references.keys() - used:
        assert drop_of(by_id[id]).reason == "yes_no"


def test_an_unreadable_image_drops_its_prompt_only() -> None:
    # As raised by the counter of image tokens, whose errors have a reason.
    class Unreadable(UserError):
        reason = "image_missing"

    def count(prompt: Prompt) -> int:
        if prompt.id == "a":
            raise Unreadable("gone")
        return 10

    by_id, _ = outcomes(
        [make_prompt("a"), make_prompt("b")],
        a_dog,
        BdhsConfig(),
        num_image_tokens=count,
    )
    assert list(by_id) == ["a", "b"]
    assert drop_of(by_id["a"]).reason == "image_missing"
    assert isinstance(by_id["b"].result, PreferencePair)
