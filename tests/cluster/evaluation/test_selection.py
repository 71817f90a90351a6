"""Which metric picks the checkpoint: by name, by direction, by what can be measured; and who wins a tie."""

from __future__ import annotations

import pytest

from cluster.evaluation.grounding import AskedSuite
from cluster.evaluation.selection import Selection
from cluster.run.state import RunState
from common import config
from common.config import Data
from common.errors import UserError
from common.evaluation import Metric, Score
from common.protocols import Suite
from reward.shapes_world import ShapesSuite
from reward.suites.prompts import PromptsSuite
from reward.suites.scorecard import Scorecard, SuiteCard
from tests.reward.builders import prompt

SHAPES: Suite = ShapesSuite(config.ShapesSuite())
PROMPTS: Suite = PromptsSuite(config.PromptsSuite(), Data())
BOTH = [SHAPES, PROMPTS]


def card(**suites: dict[str, float]) -> Scorecard:
    cards: dict[str, SuiteCard] = {}
    for suite, values in suites.items():
        metrics = {name: Metric(value) for name, value in values.items()}
        cards[suite] = SuiteCard(metrics=metrics)
    return Scorecard(suites=cards)


def test_a_metric_by_its_full_or_its_only_name() -> None:
    for select in ("shapes.chair_i", "chair_i"):
        selection = Selection(BOTH, select)
        assert selection.names == ["shapes.chair_i"]
        assert not selection.against_start
        measured = card(shapes={"chair_i": 0.25, "selection": 0.9})
        assert selection.score(measured) == Score(0.25, higher_is_better=False)
        assert selection.score(card(shapes={"selection": 0.9})) is None
    assert Selection(BOTH, "prompts.lc_win_rate").against_start


@pytest.mark.parametrize(
    ("suites", "select", "message"),
    [
        (BOTH, "win_rate", "of several; say shapes.win_rate or prompts.win_rate"),
        (BOTH, "chair", "(shapes.chair_s, shapes.chair_i, shapes.recall, shapes.attr"),
        (BOTH, "shapes.pope_yes_ratio", "got 'shapes.pope_yes_ratio'; name one of"),
        ([], "win_rate", "a metric of evaluation.suites (no suite), got 'win_rate'"),
    ],
)
def test_a_name_that_picks_nothing_is_one_line(
    suites: list[Suite], select: str, message: str
) -> None:
    with pytest.raises(UserError) as error:
        Selection(suites, select)
    line = str(error.value)
    assert line.startswith("evaluation.select: expected ")
    assert message in line
    assert "\n" not in line


def test_without_a_name_it_is_the_mean_of_the_suites_own() -> None:
    """(0.8 + 0.4) / 2; a suite that measured nothing is left out."""
    selection = Selection(BOTH, None)
    assert selection.names == ["shapes.selection", "prompts.win_rate"]
    assert Selection(BOTH, []).names == selection.names
    assert selection.against_start
    measured = card(shapes={"selection": 0.8}, prompts={"win_rate": 0.4})
    score = selection.score(measured)
    assert score is not None and score.value == pytest.approx(0.6)
    assert selection.score(card(shapes={"selection": 0.8})) == Score(0.8)
    assert selection.score(card()) is None


def test_only_what_the_metric_is_measured_on_is_asked() -> None:
    asked = [
        AskedSuite(SHAPES, {"captions": [prompt()], "questions": [prompt()] * 2}),
        AskedSuite(PROMPTS, {"answers": [prompt()]}),
    ]
    captions = Selection(BOTH, "chair_i").asked(asked)
    assert [(part.suite, part.prompts) for part in captions] == [
        (SHAPES, {"captions": [prompt()]})
    ]
    (questions,) = Selection(BOTH, "pope_f1").asked(asked)
    assert list(questions.prompts) == ["questions"]
    both = Selection(BOTH, None).asked(asked)
    assert [list(part.prompts) for part in both] == [["captions"], ["answers"]]


def test_several_metrics_pick_by_their_mean() -> None:
    """(0.9 + (1 - 0.3)) / 2; one that was not measured leaves no number to compare with the others'."""
    selection = Selection(BOTH, ["shapes.selection", "chair_i"])
    assert selection.names == ["shapes.selection", "shapes.chair_i"]
    score = selection.score(card(shapes={"selection": 0.9, "chair_i": 0.3}))
    assert score is not None and score.higher_is_better
    assert score.value == pytest.approx(0.8)
    assert selection.score(card(shapes={"selection": 0.9})) is None


def test_all_that_several_metrics_are_measured_on_is_asked() -> None:
    asked = [
        AskedSuite(SHAPES, {"captions": [prompt()], "questions": [prompt()] * 2}),
        AskedSuite(PROMPTS, {"answers": [prompt()]}),
    ]
    (shapes,) = Selection(BOTH, ["chair_i", "pope_f1", "recall"]).asked(asked)
    assert list(shapes.prompts) == ["captions", "questions"]
    without = [AskedSuite(SHAPES, {"captions": [prompt()], "questions": []})]
    with pytest.raises(UserError, match=r"got shapes\.pope_f1 without any"):
        Selection([SHAPES], ["chair_i", "pope_f1"]).asked(without)


def test_a_chosen_metric_without_prompts_is_refused() -> None:
    asked = [AskedSuite(SHAPES, {"captions": [], "questions": []})]
    assert Selection([SHAPES], None).asked(asked) == []
    with pytest.raises(UserError, match=r"got shapes\.chair_i without any"):
        Selection([SHAPES], "chair_i").asked(asked)


@pytest.mark.parametrize(
    ("values", "higher", "picked"),
    [
        ([0.5, 0.5, 0.4], True, 1),
        ([0.5, 0.6, 0.6], True, 2),
        ([0.5, 0.4, 0.4], False, 2),
        ([-1.5, -2.0, -1.5], True, 1),
        ([None, 0.1, None], True, 2),
        ([None, None, None], True, 3),
    ],
)
def test_of_equal_checkpoints_the_earlier_one_is_picked(
    values: list[float | None], higher: bool, picked: int
) -> None:
    """Without any number, the last one."""
    state = RunState.fresh(num_offline=0)
    for step, value in enumerate(values, start=1):
        score = None if value is None else Score(value, higher)
        is_best = state.note_score(step, score)
        assert is_best == (state.best_step == step)
    assert state.best_step == picked


def test_a_state_of_an_earlier_run_that_never_scored_is_read() -> None:
    content = RunState.fresh(num_offline=0).model_dump(by_alias=True)
    content["best_score"] = -1.0
    assert RunState.model_validate(content).best_score is None
