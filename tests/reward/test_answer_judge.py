"""Verifiable answers: what is read in a text, by hand, and when two boxes are the same."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.config import AnswerJudge as Settings
from common.data.images import ImageStore
from common.records import Dropped
from reward.judges.answer import AnswerJudge
from reward.judges.boxes import Box, iou, read_box
from reward.judges.final_answer import (
    final_answer,
    normalized,
    read_choice,
    read_number,
)
from tests.reward.builders import group, prompt
from tests.reward.judging import scores_of, verdict_of


def score(rule: str, text: str, right: Any, **settings: Any) -> float:
    judge = AnswerJudge(Settings(rule=rule, column="right", **settings))  # type: ignore[arg-type]
    truth = {"right": right, "options": ["the cat", "the dog", "a bird"]}
    return scores_of(judge, group(prompt(truth), text))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So \\boxed{4} or \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}"),
        ("\\boxed{never closed", "\\boxed{never closed"),
        ("<answer>1</answer> no: <ANSWER> two </ANSWER>", "two"),
        ("Think. Answer: 5\nBye", "5"),
        ("The answer is: (B)", "(B)"),
        ("The answer is", "The answer is"),
        (" plain ", "plain"),
    ],
)
def test_the_final_answer(text: str, expected: str) -> None:
    assert final_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", 42),
        ("It is 42.", 42),
        ("first 3, then 4 dogs", 4),
        ("1,234,567.5 m", 1234567.5),
        ("1,2", 2),
        ("-7", -7),
        ("\u22127", -7),
        ("from 3-4", 4),
        ("3/4", 0.75),
        ("3/0", None),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("50%", 50),
        ("$1,000", 1000),
        ("B2", 2),
        ("none", None),
        ("", None),
    ],
)
def test_numbers(text: str, expected: float | None) -> None:
    assert read_number(text) == expected


def test_numbers_within_a_share_of_the_true_one() -> None:
    """5 % of 40 is 2: 38 and 42 are right, 42.1 is not."""
    assert score("number", "about 42", 40, tolerance=0.05) == 1
    assert score("number", "38", "40", tolerance=0.05) == 1
    assert score("number", "42.1", 40, tolerance=0.05) == 0
    assert score("number", "41", 40) == 0
    # 0.1 + 0.2 in floats.
    assert score("number", "0.3", 0.1 + 0.2) == 1
    assert score("number", "0", 0) == 1
    assert score("number", "no idea", 40) == 0
    assert score("number", "9" * 400, 40) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(b).", "B"),
        ("B) the dog", "B"),
        ("B. It barks", "B"),
        ("I would say (B)", "B"),
        ("option b", "B"),
        ("The choice is C", "C"),
        ("The Dog!", "B"),
        ("A horse", None),
        ("(A) or (B)", None),
        ("option A, option B", None),
        ("D", None),
        ("neither", None),
        ("", None),
    ],
)
def test_choices(text: str, expected: str | None) -> None:
    options = ["the cat", "the dog", "a bird"]
    assert read_choice(text, options) == expected


def test_the_right_choice_is_a_letter_an_index_or_a_text() -> None:
    for right in ("B", 1, "the dog"):
        assert score("choice", "Answer: (B)", right, choices="options") == 1
        assert score("choice", "Answer: (A)", right, choices="options") == 0
    assert score("choice", "(B)", "B") == 1


@pytest.mark.parametrize(
    ("text", "right", "expected"),
    [
        ("The Cat.", "cat", 1),
        ("two", "2", 1),
        ("a  red-ish\ncircle", "red ish circle", 1),
        ("1.5", "15", 0),
        ("cats", "cat", 0),
        ("ＣＡＴ", "cat", 1),
        ("dog", ["cat", "dog"], 1),
        ("bird", ["cat", "dog"], 0),
        ("Straße", "STRASSE", 1),
    ],
)
def test_texts(text: str, right: Any, expected: float) -> None:
    assert score("text", text, right) == expected


def test_exact_is_exact() -> None:
    assert score("exact", " The Cat.\n", "The Cat.") == 1
    assert score("exact", "the cat.", "The Cat.") == 0
    assert score("exact", "<answer>x</answer>", "x") == 0


@given(st.text())
def test_normalizing_twice_changes_nothing(text: str) -> None:
    assert normalized(normalized(text)) == normalized(text)


# Boxes.

SQUARE = Box(0, 0, 10, 10)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (SQUARE, 1),
        # 5 of 10 columns: 50 shared of 100 + 100 - 50.
        ((5, 0, 15, 10), 1 / 3),
        ((2, 2, 7, 12), 40 / (100 + 50 - 40)),
        ((10, 0, 20, 10), 0),
        ((10, 10, 0, 0), 0),
        ((5, 5, 5, 5), 0),
    ],
)
def test_iou(box: tuple[float, ...], expected: float) -> None:
    box = Box(*box)
    assert iou(SQUARE, box) == pytest.approx(expected)
    assert iou(box, SQUARE) == pytest.approx(expected)


def test_iou_counts_cells() -> None:
    """On whole numbers it is a share of cells."""
    rng = random.Random(3)

    def cells(box: Box) -> set[tuple[int, int]]:
        x1, y1, x2, y2 = map(int, box)
        return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}

    for _ in range(200):
        first, second = (Box(*rng.choices(range(8), k=4)) for _ in range(2))
        union = cells(first) | cells(second)
        shared = cells(first) & cells(second)
        expected = len(shared) / len(union) if shared else 0
        assert iou(first, second) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "[10, 20, 30, 60]",
        "The cat is at (10,20),(30,60).",
        "<|box_start|>(10,20), (30,60)<|box_end|>",
        '```json\n[{"bbox_2d": [10, 20, 30, 60], "label": "cat 7"}]\n```',
        "<box>[[10, 20, 30, 60]]</box> and [1, 2, 3, 4]",
        '{"x1": 10, "y1": 20, "x2": 30, "y2": 60}',
        "xmin=10 ymin=20 xmax=30 ymax=60",
        '{"x": 10, "y": 20, "width": 20, "height": 40}',
        "10 20 30.0 60",
        "<loc0020><loc0010><loc0060><loc0030>",
    ],
)
def test_boxes_in_texts(text: str) -> None:
    read = read_box(text, "xyxy", "pixels")
    assert read is not None
    box, scale = read
    if scale == "unit":
        box = Box(*(1024 * side for side in box))
    assert box == pytest.approx((10, 20, 30, 60))


@pytest.mark.parametrize("text", ["", "no box", "1 2 3", "1 2 3 4 5", "[1, 2, 3]"])
def test_what_is_no_box(text: str) -> None:
    assert read_box(text, "xyxy", "pixels") is None
    assert score("box", text, [1, 2, 3, 4]) == 0


def test_orders_of_a_box() -> None:
    right = [10, 20, 30, 60]
    assert score("box", "[10, 20, 20, 40]", right, answer_box="xywh") == 1
    assert score("box", "[20, 40, 20, 40]", right, answer_box="cxcywh") == 1
    assert score("box", "[10, 20, 30, 60]", [10, 20, 20, 40], truth_box="xywh") == 1
    assert score("box", "[10, 20, 30, 40]", right) == pytest.approx(0.5)
    assert score("box", "[10, 20, 30, 40]", right, threshold=0.5) == 1
    assert score("box", "[10, 20, 30, 39]", right, threshold=0.5) == 0
    # The best of several right ones.
    assert score("box", "[10, 20, 30, 60]", [[0, 0, 1, 1], right]) == 1


def test_scales_of_a_box(tmp_path: Path) -> None:
    """In a picture of 200 x 100: x counts 200, y 100."""
    image = ImageStore(tmp_path).add(Image.new("RGB", (200, 100)))
    asked = replace(prompt({"box": [20, 20, 60, 60]}), images=(image,))
    by_scale = {
        "unit": "[0.1, 0.2, 0.3, 0.6]",
        "thousand": "(100,200),(300,600)",
        "pixels": "[20, 20, 60, 60]",
    }
    for scale, text in by_scale.items():
        settings = Settings(rule="box", column="box", answer_scale=scale)  # type: ignore[arg-type]
        (overlap,) = scores_of(AnswerJudge(settings), group(asked, text))
        assert overlap == pytest.approx(1)
    # Of two pictures nobody says which one a box is in.
    settings = Settings(rule="box", column="box", answer_scale="unit")
    two = replace(asked, images=(image, image))
    dropped = verdict_of(AnswerJudge(settings), group(two, by_scale["unit"]))
    assert isinstance(dropped, Dropped)
    assert "expected one picture to scale boxes by, got 2" in dropped.detail
    # No picture is needed where neither counts pixels.
    settings = Settings(
        rule="box", column="box", answer_scale="thousand", truth_scale="unit"
    )
    unit = prompt({"box": [0.1, 0.2, 0.3, 0.6]})
    (overlap,) = scores_of(AnswerJudge(settings), group(unit, by_scale["thousand"]))
    assert overlap == pytest.approx(1)


# Rows without an answer.


@pytest.mark.parametrize(
    ("settings", "truth"),
    [
        (Settings(), None),
        (Settings(column="label"), {"other": 1}),
        (Settings(column="label"), {"label": None}),
        (Settings(column="label"), {"label": []}),
        (Settings(column="label", rule="number"), {"label": "many"}),
        (Settings(column="label", rule="choice"), {"label": "many"}),
        (Settings(column="label", rule="choice", choices="c"), {"label": "A"}),
        (Settings(column="label", rule="box"), {"label": [1, 2, 3]}),
        (
            Settings(column="label", rule="box", answer_scale="unit"),
            {"label": [1, 2, 3, 4]},
        ),
    ],
)
def test_a_row_without_an_answer_has_no_verdict(
    settings: Settings, truth: dict[str, Any] | None
) -> None:
    answer = verdict_of(
        AnswerJudge(settings), group(prompt(truth, "p9"), "[1, 2, 3, 4]", "b")
    )
    assert isinstance(answer, Dropped)
    assert answer.reason == "judge_failed"
    assert answer.detail.startswith("judge answer, prompt p9: expected ")
