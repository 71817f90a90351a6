"""Judge and metrics see the picture through the truth alone: swap the truths of two scenes and the numbers turn."""

from __future__ import annotations

from dataclasses import replace

from common import config
from common.evaluation import SuiteAnswers
from common.shapes.language import caption
from common.shapes.scenes import Scene, SceneObject
from reward.shapes_world import ShapesSuite
from reward.worlds import rules_judge
from tests.reward.builders import SCENE, caption_prompt, group, question_prompt
from tests.reward.judging import scores_of

OTHER = Scene((SceneObject(2, "ring", "black"), SceneObject(8, "cross", "green")), 2)
METRICS = ("chair_i", "recall", "pope_accuracy", "selection")


def test_swapped_truths_turn_the_verdict() -> None:
    """Against the other scene two objects are invented (2) and two missed (1)."""
    judge = rules_judge(config.RulesJudge())
    texts = (caption(SCENE), caption(OTHER))
    assert scores_of(judge, group(caption_prompt(SCENE), *texts)) == (0.0, -3.0)
    assert scores_of(judge, group(caption_prompt(OTHER), *texts)) == (-3.0, 0.0)


def measured(first: Scene, second: Scene, answer: str) -> list[float]:
    """The metrics of true captions of `SCENE` and `OTHER` when the truth says `first` and `second`."""
    captions = (
        group(caption_prompt(first, "a"), caption(SCENE)),
        group(caption_prompt(second, "b"), caption(OTHER)),
    )
    questions = (group(question_prompt(answer, scene="a"), "Yes."),)
    answers = SuiteAnswers({"captions": captions, "questions": questions})
    metrics = ShapesSuite(config.ShapesSuite()).measure(answers, None, 10).metrics
    return [metrics[name].value for name in METRICS]


def test_swapped_truths_turn_the_scorecard() -> None:
    assert measured(SCENE, OTHER, "yes") == [0.0, 1.0, 1.0, 1.0]
    assert measured(OTHER, SCENE, "no") == [1.0, 0.0, 0.0, 0.0]


def test_the_reference_is_not_looked_at() -> None:
    """Only `truth` counts: a reference that flatters a wrong caption changes nothing."""
    judge = rules_judge(config.RulesJudge())
    wrong = caption(OTHER)
    flattered = replace(caption_prompt(SCENE), reference=wrong)
    assert scores_of(judge, group(flattered, wrong)) == scores_of(
        judge, group(caption_prompt(SCENE), wrong)
    )
