"""The rule-based corrupter: every error is of its kind, and the rule judge sees it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import config
from common.config.povid import KINDS, ErrorKind
from common.records import Dropped, Message, Part, Prompt
from common.shapes.claims import compare
from common.shapes.corrupter import corrupt
from common.shapes.language import caption, parse_caption, tell
from common.shapes.questions import answer_text, questions
from common.shapes.scenes import SHAPES, Scene, SceneObject, sample_scene
from common.worlds.questions import POPE_SPLITS
from reward.worlds import rules_judge
from tests.reward.builders import group
from tests.reward.judging import scores_of

JUDGE = rules_judge(config.RulesJudge())
SCENES = st.builds(
    lambda seed, bias: sample_scene(random.Random(seed), bias),
    st.integers(0, 10**9),
    st.floats(0, 1),
)
RED_SHAPES = [SceneObject(cell, shape, "red") for cell, shape in enumerate(SHAPES)]
FULL = Scene(tuple(RED_SHAPES), 0)
"""Every shape is there, so none can be invented."""


def prompt(
    truth: dict[str, Any] | None,
    reference: str | None,
    id: str = "p",
) -> Prompt:
    question = Part("text", "Describe the image.")
    message = Message("user", (question,))
    return Prompt(id, (message,), (), reference, truth)


def told(scene: Scene, rng: random.Random) -> str:
    """A true caption of some of the objects, in any order."""
    num_told = rng.randint(1, len(scene.objects))
    return tell(rng.sample(scene.objects, num_told))


@given(
    SCENES,
    st.sampled_from(("entity", "attribute", "relation")),
    st.integers(0, 100),
    st.randoms(use_true_random=False),
)
def test_a_corrupted_caption_is_parsed_and_judged_worse(
    scene: Scene,
    kind: ErrorKind,
    seed: int,
    rng: random.Random,
) -> None:
    truth = told(scene, rng)
    asked = prompt(scene.to_dict(), truth)
    wrong = corrupt(asked, kind, seed)
    if kind == "entity" and len(scene.objects) == len(SHAPES):
        assert isinstance(wrong, Dropped)
        assert wrong.reason == "nothing_absent"
        return
    assert isinstance(wrong, str)
    worse, better = scores_of(JUDGE, group(asked, wrong, truth))
    assert worse < better
    compared = compare(wrong, scene)
    kinds = {claim.kind for claim in compared.claims}
    errors = []
    for claim in compared.claims:
        errors += claim.wrong
    mentions = parse_caption(wrong)
    assert all(mention.colour and mention.place for mention in mentions)
    num_added = len(mentions) - len(parse_caption(truth))
    if kind == "entity":
        assert kinds <= {"true", "hallucinated"}
        assert compared.count("hallucinated") == 1
        # As a further sentence, or in place of a true object.
        assert num_added in (0, 1)
        return
    assert kinds <= {"true", "wrong_attribute"}
    assert num_added == 0
    if kind == "attribute":
        assert errors == ["colour"]
    else:
        # One object moved, or two exchanged.
        assert errors in (["place"], ["place", "place"])


@given(SCENES, st.sampled_from(POPE_SPLITS))
def test_a_corrupted_answer_is_the_other_one(scene: Scene, split: Any) -> None:
    for question in questions(scene, split):
        truth = {"answer": question.answer, "split": split, "scene": "p"}
        asked = prompt(truth, answer_text(question.answer))
        wrong = corrupt(asked, "reasoning", 0)
        assert isinstance(wrong, str)
        worse, better = scores_of(JUDGE, group(asked, wrong, asked.reference or ""))
        assert worse < better


def test_the_invented_entity_is_the_usual_partner_beside_or_instead() -> None:
    """A circle brings a square. Over many prompts it comes as a further sentence and in place of the circle or star."""
    scene = Scene((SceneObject(0, "circle", "red"), SceneObject(4, "star", "blue")), 1)
    counts = {}
    for number in range(40):
        asked = prompt(scene.to_dict(), caption(scene), f"p{number}")
        wrong = corrupt(asked, "entity", 0)
        assert isinstance(wrong, str)
        shapes = tuple(mention.shape for mention in parse_caption(wrong))
        counts[shapes] = counts.get(shapes, 0) + 1
    assert set(counts) == {
        ("circle", "star", "square"),
        ("square", "star"),
        ("circle", "square"),
    }
    assert counts["circle", "star", "square"] in range(10, 31)


def test_equal_seeds_give_equal_errors() -> None:
    scene = sample_scene(random.Random(3))

    def errors(seed: int) -> list[str | Dropped]:
        results = []
        for number in range(20):
            asked = prompt(scene.to_dict(), caption(scene), f"p{number}")
            results += [corrupt(asked, kind, seed) for kind in KINDS]
        return results

    assert errors(0) == errors(0) != errors(1)


@pytest.mark.parametrize(
    ("truth", "reference", "kind", "reason"),
    [
        (None, "There is a red circle at the top.", "entity", "bad_truth"),
        (
            {"objects": 3, "seed": 0},
            "There is a red circle at the top.",
            "entity",
            "bad_truth",
        ),
        (FULL.to_dict(), "", "attribute", "not_true"),
        (FULL.to_dict(), "circle", "attribute", "not_true"),
        (
            FULL.to_dict(),
            "There is a blue circle at the top left.",
            "attribute",
            "not_true",
        ),
        (
            FULL.to_dict(),
            "There is a red circle at the top left. " * 2,
            "attribute",
            "not_true",
        ),
        (FULL.to_dict(), "x" * 10_000_000, "attribute", "not_true"),
        (FULL.to_dict(), caption(FULL), "entity", "nothing_absent"),
        (FULL.to_dict(), caption(FULL), "reasoning", "kind_unsuited"),
        ({"answer": "yes"}, "Yes.", "entity", "kind_unsuited"),
        ({"answer": "yes"}, "Indeed.", "reasoning", "not_true"),
    ],
)
def test_what_cannot_be_corrupted_has_a_reason(
    truth: Any,
    reference: str,
    kind: ErrorKind,
    reason: str,
) -> None:
    result = corrupt(prompt(truth, reference), kind, 0)
    assert isinstance(result, Dropped)
    assert result.reason == reason
