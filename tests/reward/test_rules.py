"""The rule-based judge. Costs: hallucination 1, attribute ½, miss ½; the scene is a red circle and a blue star."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import config
from common.records import Dropped
from common.shapes.language import caption
from common.shapes.scenes import SHAPES, sample_scene
from common.worlds.answers import read_answer
from reward.worlds import rules_judge
from tests.reward.builders import (
    SCENE,
    TRUE,
    caption_prompt,
    completion,
    group,
    prompt,
    question_prompt,
)
from tests.reward.judging import scores_of, verdict_of

JUDGE = rules_judge(config.RulesJudge())
SENTENCES = [f"There is a red {shape} at the top." for shape in SHAPES]


def score(text: str, **truth: str) -> float:
    asked = question_prompt(**truth) if truth else caption_prompt()
    return scores_of(JUDGE, group(asked, text))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(TRUE, 0.0, id="flawless"),
        pytest.param(
            TRUE + " There is a green ring at the bottom.",
            -1.0,
            id="one invented object: 1",
        ),
        pytest.param(TRUE.replace("red", "green"), -0.5, id="one wrong colour: ½"),
        pytest.param(
            TRUE.replace("red", "green").replace("center", "left"),
            -1.0,
            id="colour and place: ½ + ½",
        ),
        pytest.param(
            "There is a red circle at the top left.", -0.5, id="star missed: ½"
        ),
        pytest.param(
            TRUE + " There is a red circle at the top left.",
            -1.0,
            id="circle twice: the second is invented",
        ),
        pytest.param(
            "There is a circle. There is a star.",
            0.0,
            id="what is left open is not wrong",
        ),
        pytest.param("", -2.0, id="mute: 2 missed x ½ + 1"),
        pytest.param(
            "green ideas sleep", -2.0, id="gibberish costs as much as silence"
        ),
        pytest.param(
            "There is no circle and no star.", -2.0, id="denials claim nothing"
        ),
    ],
)
def test_caption_scores(text: str, expected: float) -> None:
    assert score(text) == expected


def test_of_two_claims_about_one_object_the_better_one_counts() -> None:
    """A green and a red circle: the red one is the object, the green one is invented: -1, not -1 - ½, in any order."""
    green = "There is a green circle at the top left. "
    assert score(green + TRUE) == score(TRUE + " " + green) == -1.0


def test_a_cut_off_text_costs_one_more_invented_object() -> None:
    cut = replace(
        group(caption_prompt(), TRUE), completions=(completion(TRUE, finish="length"),)
    )
    verdict = verdict_of(JUDGE, cut)
    assert (verdict.scores, verdict.notes) == ((-1.0,), ("cut off",))


def test_silence_never_beats_one_slip() -> None:
    """One object, one slip: -1; mute: ½ + 1 = 1.5."""
    scene = replace(SCENE, objects=SCENE.objects[:1])
    slip = "There is a red circle at the top left. There is a ring."
    verdict = verdict_of(JUDGE, group(caption_prompt(scene), slip, ""))
    assert verdict.scores == (-1.0, -1.5)


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("Yes.", "yes", 0.0),
        ("No.", "no", 0.0),
        ("Yes, there is.", "no", -1.0),
        ("No, there is not.", "yes", -0.5),
        ("A picture.", "yes", -1.5),
        ("", "no", -1.5),
    ],
)
def test_question_scores(text: str, answer: str, expected: float) -> None:
    """A false yes imagines (1), a false no misses (½), no answer at all misses (½) and says nothing (1)."""
    assert score(text, answer=answer) == expected


def test_answers_are_read_from_the_first_sentence() -> None:
    assert read_answer("YES!") == "yes"
    assert read_answer("No\nYes") == "no"
    assert read_answer("Nothing. Yes.") is None
    assert read_answer("There isn’t a star") == "no"
    assert read_answer("There isn't a star") == "no"
    assert read_answer("Yes, there’s a star") == "yes"
    assert read_answer("No, it isn’t") == "no"
    assert read_answer("\nNo") == "no"
    assert read_answer("Not at all") == "no"
    assert read_answer("It is notable") is None


def test_notes_name_every_fault() -> None:
    text = "There is a green circle. There is a red ring."
    (note,) = verdict_of(JUDGE, group(caption_prompt(), text)).notes
    assert note == "wrong colour of the circle; hallucinated red ring; missed blue star"


@pytest.mark.parametrize(
    "truth", [None, {}, {"objects": [{"shape": "dog"}], "seed": 0}, {"answer": "maybe"}]
)
def test_without_truth_there_is_no_verdict(truth: dict[str, object] | None) -> None:
    dropped = verdict_of(JUDGE, group(prompt(truth), TRUE))
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "judge_failed"
    assert "expected a" in dropped.detail


@given(
    st.lists(
        st.lists(st.sampled_from(SENTENCES), max_size=4).map(" ".join),
        min_size=2,
        max_size=6,
    ),
    st.randoms(),
)
def test_permuting_completions_permutes_scores(
    texts: list[str], rng: random.Random
) -> None:
    order = list(range(len(texts)))
    rng.shuffle(order)
    shuffled = [texts[index] for index in order]
    scores = scores_of(JUDGE, group(caption_prompt(), *texts))
    expected = tuple(scores[index] for index in order)
    assert scores_of(JUDGE, group(caption_prompt(), *shuffled)) == expected


@given(st.integers(0, 10_000), st.sampled_from(SENTENCES))
def test_the_true_caption_is_flawless_and_every_absent_object_costs(
    seed: int, sentence: str
) -> None:
    scene = sample_scene(random.Random(seed))
    absent = [s for s in SENTENCES if not any(shape in s for shape in scene.shapes)]
    worse = [f"{caption(scene)} {s}" for s in absent]
    scores = scores_of(JUDGE, group(caption_prompt(scene), caption(scene), *worse))
    assert scores == (0.0, *[-1.0] * len(absent))
