"""POPE, AMBER and HallusionBench: yes/no answers and what is made of them, by hand and against other ways to count."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from common.config.benchmarks import (
    AmberBenchmark,
    HallusionBenchmark,
    PopeBenchmark,
)
from common.data.images import ImageStore
from reward.benchmarks.amber import Amber, yes_or_no
from reward.benchmarks.hallusionbench import HallusionBench, yes_no_or_unclear
from reward.benchmarks.pope import Pope
from tests.reward.benchmarks.published import (
    amber_folder,
    answers_of,
    hallusion_folder,
    hallusion_rows,
    measured,
    pope_folder,
)

POPE_TEXTS = {
    "random/1": "Yes, there is.",
    "random/2": "No.",
    "random/3": "NO",
    "popular/1": "There is no dog",
    "popular/2": "Not that I can see. Yes",
}


def official_pope(texts: list[str], labels: list[str]) -> dict[str, float]:
    """The official script's reading and its arithmetic, in our own words."""
    said_no = []
    for text in texts:
        first = text[: text.index(".")] if "." in text else text
        words = first.replace(",", "").split(" ")
        said_no.append("No" in words or "not" in words or "no" in words)
    is_no = [label == "no" for label in labels]
    pairs = list(zip(said_no, is_no, strict=True))
    tp = pairs.count((False, False))
    fp = pairs.count((False, True))
    fn = pairs.count((True, False))
    return {
        "accuracy": (tp + pairs.count((True, True))) / len(pairs),
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "yes_ratio": said_no.count(False) / len(pairs),
    }


def test_pope_equals_the_official_script(tmp_path: Path) -> None:
    """ "Not that …" and "NO" are yes to that script; the strict reading takes both for no.

    random, strict: all three right. popular, strict: both say no, both labels are yes: accuracy 0.
    """
    suite = Pope(PopeBenchmark(path=str(pope_folder(tmp_path / "pope"))))
    answers = answers_of(suite, ImageStore(tmp_path / "store"), POPE_TEXTS)
    value = measured(suite, answers)
    texts = list(POPE_TEXTS.values())
    official = official_pope(texts[:3], ["yes", "no", "no"])
    for name, expected in official.items():
        assert value[f"pope/random/{name}"] == pytest.approx(expected), name
    official = official_pope(texts[3:], ["yes", "yes"])
    for name, expected in official.items():
        assert value[f"pope/popular/{name}"] == pytest.approx(expected), name
    assert value["pope/random/strict_accuracy"] == 1
    assert value["pope/popular/strict_accuracy"] == 0
    assert value["pope_accuracy"] == pytest.approx((2 / 3 + 0.5) / 2)


def test_pope_of_another_data_set_has_its_splits(tmp_path: Path) -> None:
    folder = pope_folder(tmp_path / "pope")
    (folder / "coco_pope_random.json").rename(folder / "aokvqa_pope_adversarial.json")
    suite = Pope(PopeBenchmark(path=str(folder)))
    texts = {"adversarial/1": "Yes"}
    answers = answers_of(suite, ImageStore(tmp_path / "store"), texts)
    assert measured(suite, answers)["pope/adversarial/accuracy"] == 1


AMBER_TEXTS = {
    "1": "A puppy, its leaves, and a cloud. People with a toy and toys.",
    "2": "A cloud.",
    "1005": "No.",
    "1006": "Yes, there is.",
    "1007": "No, it is not",
    "1008": "There are not two dogs",
    "1009": "",
}


def test_amber_descriptions_by_hand(tmp_path: Path) -> None:
    """1: puppy (dog), leaf (tree), cloud (always safe), people (person, imagined), toy, toy (ball, imagined).

    Mentions 6, made up 3; covered 2 of 2; imagined 2 of 2. 2: cloud is safe: mentions 1, covered 0 of 1, 0 of 1.
    CHAIR 3/7, Cover 2/3, Hal 1/2, Cog 2/3.
    """
    suite = Amber(AmberBenchmark(path=str(amber_folder(tmp_path / "amber"))))
    answers = answers_of(suite, ImageStore(tmp_path / "store"), AMBER_TEXTS)
    value = measured(suite, answers)
    assert value["chair"] == pytest.approx(3 / 7)
    assert value["cover"] == pytest.approx(2 / 3)
    assert value["hal"] == 0.5
    assert value["cog"] == pytest.approx(2 / 3)


def test_amber_takes_no_as_positive(tmp_path: Path) -> None:
    """Labels no no yes no yes; said No Yes No No and nothing.

    Right: 1005, 1008: accuracy 2/5. Said No three times, twice right: precision 2/3. Three are no: recall 2/3, F1 2/3.
    """
    suite = Amber(AmberBenchmark(path=str(amber_folder(tmp_path / "amber"))))
    answers = answers_of(suite, ImageStore(tmp_path / "store"), AMBER_TEXTS)
    value = measured(suite, answers)
    assert value["accuracy"] == pytest.approx(2 / 5)
    assert value["precision"] == pytest.approx(2 / 3)
    assert value["recall"] == pytest.approx(2 / 3)
    assert value["f1"] == pytest.approx(2 / 3)
    assert value["existence/accuracy"] == 0.5
    assert value["attribute/accuracy"] == 0.5
    assert value["relation/accuracy"] == 0


def test_amber_equals_the_official_arithmetic(tmp_path: Path) -> None:
    """The responses that are exported, counted as the official script does: exactly Yes or No, else wrong."""
    suite = Amber(AmberBenchmark(path=str(amber_folder(tmp_path / "amber"))))
    answers = answers_of(suite, ImageStore(tmp_path / "store"), AMBER_TEXTS)
    truths = {1005: "no", 1006: "no", 1007: "yes", 1008: "no", 1009: "yes"}
    num: defaultdict[str, int] = defaultdict(int)
    for number, truth in truths.items():
        response = yes_or_no(AMBER_TEXTS[str(number)])
        num["right"] += response.lower() == truth
        num["no"] += truth == "no"
        num["no_right"] += truth == "no" and response == "No"
        num["said_no"] += response == "No"
    value = measured(suite, answers)
    assert value["accuracy"] == num["right"] / len(truths)
    assert value["precision"] == num["no_right"] / num["said_no"]
    assert value["recall"] == num["no_right"] / num["no"]


HALLUSION_TEXTS = [
    "Yes.",
    "No",
    "Yes, it is",
    "Yes",
    "I cannot tell.",
    "I cannot tell.",
]
"""VD: figure 0 both right; figure 1: question 0 wrong, question 1 right. VS: open without a figure, open with one."""


def test_hallusionbench_by_hand(tmp_path: Path) -> None:
    """Right: yes yes no yes, open is right without a figure, not with one: aAcc 4/6.

    Figures: VD 0 right, VD 1 not, VS 1 not (VS 0 is none): fAcc 1/3. Questions: VD 0 not, VD 1 right, VS 0 not: 1/3.
    """
    suite = HallusionBench(
        HallusionBenchmark(path=str(hallusion_folder(tmp_path / "hallusion")))
    )
    answers = answers_of(suite, ImageStore(tmp_path / "store"), HALLUSION_TEXTS)
    value = measured(suite, answers)
    assert value["a_acc"] == pytest.approx(4 / 6)
    assert value["f_acc"] == pytest.approx(1 / 3)
    assert value["q_acc"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_hallusionbench_equals_another_way_to_count(tmp_path: Path, seed: int) -> None:
    """Rows grouped by keys, over answers of every kind."""
    kinds = ["Yes", "No.", "It is hard to say"]
    texts = [kinds[(seed + 2 * place * place + place) % 3] for place in range(6)]
    suite = HallusionBench(
        HallusionBenchmark(path=str(hallusion_folder(tmp_path / "hallusion")))
    )
    answers = answers_of(suite, ImageStore(tmp_path / "store"), texts)
    by_figure = defaultdict(list)
    by_question = defaultdict(list)
    for row, text in zip(hallusion_rows(), texts, strict=True):
        said = {"Yes": "1", "No.": "0"}.get(text, "2")
        without_figure = row["category"] == "VS" and row["figure_id"] == "0"
        right = said == row["gt_answer"] or (without_figure and said == "2")
        place = (row["category"], row["subcategory"], row["set_id"])
        by_question[(*place, row["question_id"])].append(right)
        if not without_figure:
            by_figure[(*place, row["figure_id"])].append(right)
    value = measured(suite, answers)
    all_right = [right for rights in by_question.values() for right in rights]
    assert value["a_acc"] == pytest.approx(sum(all_right) / 6)
    figures = list(map(all, by_figure.values()))
    assert value["f_acc"] == pytest.approx(sum(figures) / len(figures))
    questions = list(map(all, by_question.values()))
    assert value["q_acc"] == pytest.approx(sum(questions) / len(questions))


def test_questions_without_a_figure_have_no_picture(tmp_path: Path) -> None:
    suite = HallusionBench(
        HallusionBenchmark(path=str(hallusion_folder(tmp_path / "hallusion")))
    )
    (prompts,) = suite.prompts("test", ImageStore(tmp_path / "store"), []).values()
    assert [len(prompt.images) for prompt in prompts] == [1, 1, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes, it is.", "yes"),
        ("YES", "yes"),
        ("No.", "no"),
        ("It isn't.", "no"),
        ("I do not know", "no"),
        ("Yesterday", ""),
        ("The figure shows two lines. Yes.", ""),
        ("", ""),
    ],
)
def test_an_answer_may_be_unclear(text: str, said: str) -> None:
    assert yes_no_or_unclear(text) == said
