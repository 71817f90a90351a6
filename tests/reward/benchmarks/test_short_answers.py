"""VQA accuracy, MMVP's pairs and GQA's exact match: by hand, and against other ways to count."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from common.config.benchmarks import GqaBenchmark, MmvpBenchmark, TextVqaBenchmark
from common.data.images import ImageStore
from reward.benchmarks.gqa import Gqa
from reward.benchmarks.mmvp import Mmvp, chosen_option
from reward.benchmarks.textvqa import TextVqa
from reward.benchmarks.vqa_text import agreement, normalised
from tests.reward.benchmarks.published import (
    answers_of,
    gqa_folder,
    measured,
    mmvp_folder,
    reasons_of,
    textvqa_folder,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Dogs", "dogs"),
        ("a man and an ox", "man and ox"),
        ("Two", "2"),
        ("none", "0"),
        ("ten o clock.", "10 o clock"),
        ("dont", "don't"),
        ("couldntve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("its well", "its well"),
        ("twas", "'twas"),
        ("1,000", "1000"),
        ("3.5 kg.", "3.5 kg"),
        ("u.s.a.", "usa"),
        ("what?", "what"),
        ("well-known", "well known"),
        ("well - known", "well known"),
        ("red/blue", "red blue"),
        ("mcdonald's", "mcdonald 's"),
        ("line\nbreak\ttab", "line break tab"),
        ("(left)", "left"),
        ("", ""),
    ],
)
def test_normalised_as_vqa_does(answer: str, expected: str) -> None:
    assert normalised(answer) == expected


def left_out_in_turn(answer: str, people: list[str]) -> float:
    """VQA accuracy as its paper words it: every person is left out once, the others are asked."""
    total = 0.0
    for left_out in range(len(people)):
        others = people[:left_out] + people[left_out + 1 :]
        total += min(1.0, others.count(answer) / 3)
    return total / len(people)


def test_agreement_equals_leaving_people_out_in_turn() -> None:
    draw = random.Random(1)
    for _ in range(200):
        people = [draw.choice("xyzw") for _ in range(10)]
        answer = draw.choice("xyzv")
        expected = left_out_in_turn(answer, people)
        assert agreement(answer, people) / 30 == pytest.approx(expected)


def test_textvqa_by_hand(tmp_path: Path) -> None:
    """Seven of ten say "The Dakota.": 1. Two say "2": left out twice 1/3, else 2/3: (2/3 + 16/3) / 10 = 0.6."""
    suite = TextVqa(TextVqaBenchmark(path=str(textvqa_folder(tmp_path / "vqa"))))
    answers = answers_of(suite, ImageStore(tmp_path / "store"), ["The Dakota.", "2"])
    assert measured(suite, answers)["accuracy"] == pytest.approx((1 + 0.6) / 2)


def test_gqa_is_exact_but_for_case_and_full_stop(tmp_path: Path) -> None:
    suite = Gqa(GqaBenchmark(path=str(gqa_folder(tmp_path / "gqa"))))
    store = ImageStore(tmp_path / "store")
    right = measured(suite, answers_of(suite, store, ["No.", "cup"]))
    assert right["accuracy"] == 1
    half = measured(suite, answers_of(suite, store, ["no", "a cup"]))
    assert half["accuracy"] == 0.5


OPTIONS = {"a": "open", "b": "closed"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(a)", "a"),
        ("(B) Closed", "b"),
        ("b", "b"),
        ("B.", "b"),
        ("a) Open", "a"),
        ("The answer is (b).", "b"),
        ("The door is open.", "a"),
        ("A door that is closed", "b"),
        ("Closed", "b"),
        ("open or closed", ""),
        ("(a) or (b)", ""),
        ("reopened", ""),
        ("(c)", ""),
        ("", ""),
    ],
)
def test_the_option_of_an_answer(text: str, letter: str) -> None:
    assert chosen_option(text, OPTIONS) == letter


def test_mmvp_counts_pairs(tmp_path: Path) -> None:
    """Right answers are a b, a b. First pair both right, second one right: pairs 1/2, questions 3/4."""
    suite = Mmvp(MmvpBenchmark(path=str(mmvp_folder(tmp_path / "mmvp"))))
    texts = ["(a)", "Closed.", "(a)", "open"]
    answers = answers_of(suite, ImageStore(tmp_path / "store"), texts)
    value = measured(suite, answers)
    assert value["pair_accuracy"] == 0.5
    assert value["accuracy"] == 0.75


def test_a_pair_that_lost_an_answer_is_none(tmp_path: Path) -> None:
    suite = Mmvp(MmvpBenchmark(path=str(mmvp_folder(tmp_path / "mmvp"))))
    texts = {"1": "(a)", "2": "(b)", "3": "(a)"}
    answers = answers_of(suite, ImageStore(tmp_path / "store"), texts)
    assert measured(suite, answers)["pair_accuracy"] == 1


def test_a_row_that_cannot_be_used_takes_its_pair_along(tmp_path: Path) -> None:
    folder = mmvp_folder(tmp_path / "mmvp")
    file = folder / "Questions.csv"
    file.write_text(file.read_text().replace("4,Is the door open?", "4,"))
    suite = Mmvp(MmvpBenchmark(path=str(folder)))
    store = ImageStore(tmp_path / "store")
    assert reasons_of(suite, store) == {"bad_row": 1, "half_pair": 1}
    answers = answers_of(suite, store, ["(a)", "(b)"])
    assert measured(suite, answers)["pair_accuracy"] == 1
