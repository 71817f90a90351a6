"""The suite of world 2 and the judges of both worlds: values by hand, and what is absent where nothing was asked."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from common import config
from common.data.images import ImageStore
from common.evaluation import Comparison, Measurement, SuiteAnswers
from common.records import Prompt, RolloutGroup, Verdict
from common.tabletop.conversations import CAPTION, answer
from common.tabletop.prompts import WORLD
from common.tabletop.scenes import Scene, Thing
from reward.judges.factory import make_judge
from reward.tabletop_world import TabletopSuite
from tests.reward.builders import SCENE, TRUE, caption_prompt, group

CUP = Thing(3, "cup", "white", 1)
PLATE = Thing(4, "plate", "white", 1)
TABLE = Scene((CUP, PLATE), 0)
RIGHT = "A white cup at the left is left of a white plate."
WRONG = (
    "Two red cups at the top are left of a white plate. A green bowl is at the right."
)
"""Made up: one of three mentions. Of what is said of the others: 1 of 2 colours, the place of two, 1 of 2 numbers."""


def asked(
    about: str, kind: str = "", split: str | None = None, scene: str = "a"
) -> Prompt:
    truth = {
        "world": WORLD,
        "scene": scene,
        **TABLE.to_dict(),
        "about": about,
        "kind": kind,
        "split": split,
    }
    return Prompt(f"{scene}/{about}/{kind}/{split}", (), (), truth=truth)


def measure(
    tasks: dict[str, tuple[RolloutGroup, ...]], comparison: Comparison | None = None
) -> Measurement:
    suite = TabletopSuite(config.TabletopSuite())
    return suite.measure(SuiteAnswers(tasks), comparison, 50)


def values(measurement: Measurement) -> dict[str, float]:
    return {name: metric.value for name, metric in measurement.metrics.items()}


def test_by_hand() -> None:
    captions = (
        group(asked("caption"), RIGHT),
        group(asked("caption", scene="b"), WRONG),
    )
    questions = (
        group(asked("yes_no", "cup", "adversarial"), "Yes, there is a white cup."),
        group(asked("yes_no", "fork", "adversarial"), "Yes, there is a black fork."),
    )
    attributes = (
        group(asked("colour", "cup"), "The cup is white."),
        group(asked("place", "cup"), "The cup is at the top."),
    )
    turns = (group(asked("number", "plate"), "There is one plate."),)
    tasks = {
        "captions": captions,
        "questions": questions,
        "attributes": attributes,
        "turns": turns,
    }
    measurement = measure(tasks)
    value = values(measurement)
    assert value["chair_i"] == pytest.approx(1 / 5)
    assert value["chair_s"] == 0.5
    assert value["recall"] == 1
    assert value["attribute_errors"] == pytest.approx(1 / 4)
    assert value["relation_errors"] == pytest.approx(1 / 4)
    assert value["count_errors"] == pytest.approx(1 / 4)
    assert value["pope/adversarial/precision"] == 0.5
    assert value["pope/adversarial/recall"] == 1
    assert "pope/random/precision" not in value
    assert value["colour_asked"] == 1
    assert value["place_asked"] == 0
    assert "number_asked" not in value
    assert value["turns"] == 1
    for name, metric in measurement.metrics.items():
        assert metric.interval is not None, name


def test_what_was_never_said_is_absent() -> None:
    value = values(measure({"captions": (group(asked("caption"), "There is a cup."),)}))
    assert value["chair_i"] == 0
    assert "attribute_errors" not in value
    assert "relation_errors" not in value
    assert value["count_errors"] == 0


def test_the_win_rate_is_also_told_at_equal_length() -> None:
    """Both captions win and are of other lengths than the start policy's: at equal length they still win."""
    policy = (group(asked("caption"), RIGHT), group(asked("caption", scene="b"), RIGHT))
    start = (group(asked("caption"), WRONG), group(asked("caption", scene="b"), RIGHT))
    verdicts = {answered.prompt.id: Verdict((1.0, 0.0)) for answered in policy}
    comparison = Comparison(SuiteAnswers({"captions": start}), verdicts)
    value = values(measure({"captions": policy}, comparison))
    assert value["win_rate"] == 1
    assert value["lc_win_rate"] > 0.9


def test_a_win_rate_without_the_start_policys_lengths_says_so() -> None:
    policy = (group(asked("caption"), RIGHT),)
    comparison = Comparison(SuiteAnswers(), {policy[0].prompt.id: Verdict((1.0, 0.0))})
    measurement = measure({"captions": policy}, comparison)
    assert "lc_win_rate" not in measurement.metrics
    assert "not known" in measurement.missing["lc_win_rate"]


def test_a_scene_without_an_answer_is_no_row() -> None:
    """The start policy told of two scenes, this one of one: both captions of that one make up the whole table."""
    start = (group(asked("caption"), RIGHT), group(asked("caption", scene="b"), RIGHT))
    policy = start[:1]
    verdicts = {policy[0].prompt.id: Verdict((1.0, 0.0))}
    alone = Comparison(SuiteAnswers({"captions": start[:1]}), verdicts)
    both = Comparison(SuiteAnswers({"captions": start}), verdicts)
    answers = {"captions": policy}
    intervals = [measure(answers, comparison).metrics for comparison in (alone, both)]
    assert intervals[0] == intervals[1]


def test_one_rules_judge_serves_both_worlds() -> None:
    judge = make_judge(config.RulesJudge())
    groups = [
        group(asked("caption"), RIGHT, WRONG),
        group(caption_prompt(SCENE, "a"), TRUE),
        group(replace(asked("caption"), truth={"world": WORLD}), RIGHT),
    ]
    tabletop, shapes, unknown = asyncio.run(judge.judge(groups))
    assert isinstance(tabletop, Verdict)
    assert tabletop.scores == (0.0, -2.5)
    assert isinstance(shapes, Verdict)
    assert shapes.scores == (0.0,)
    assert not isinstance(unknown, Verdict)


def test_held_out_pairs_have_true_and_false_captions(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    suite = TabletopSuite(config.TabletopSuite(test_scenes=60, questions_per_scene=0))
    store = ImageStore(tmp_path_factory.mktemp("images"))
    prompts = suite.prompts("test", store, [])
    assert len(suite.heldout_pairs(prompts, 4)) == 4
    pairs = suite.heldout_pairs(prompts, 100)
    kinds = [pair.id.rpartition("/")[2] for pair in pairs]
    assert kinds == ["entity", "attribute", "relation"] * 20
    for pair in pairs:
        assert pair.chosen.text == pair.prompt.reference != pair.rejected.text


def test_the_samples_page_marks_what_is_wrong() -> None:
    suite = TabletopSuite(config.TabletopSuite())
    shown = suite.show(asked("caption"), WRONG)
    marked = {(shown.text[begin:end], kind) for begin, end, kind in shown.marks}
    assert marked == {("cups", "wrong"), ("bowl", "made-up")}
    assert "one white cup (left)" in shown.notes
    assert suite.show(Prompt("p", (), ()), WRONG).marks == ()
    assert answer(CAPTION, TABLE) == RIGHT
