"""Judge and metrics see the picture through the truth alone: swap the truths of two scenes and the numbers turn."""

from __future__ import annotations

from dataclasses import replace

from common import config
from common.shapes.language import caption
from common.shapes.scenes import Scene, SceneObject
from reward.scorecard import Answers, make_scorecard
from reward.shapes_world import rules_judge
from tests.reward.builders import SCENE, caption_prompt, group, question_prompt
from tests.reward.judging import scores_of

OTHER = Scene((SceneObject(2, "ring", "black"), SceneObject(8, "cross", "green")), 2)


def test_swapped_truths_turn_the_verdict() -> None:
    """Against the other scene two objects are invented (2) and two missed (1)."""
    judge = rules_judge(config.RulesJudge())
    texts = (caption(SCENE), caption(OTHER))
    assert scores_of(judge, group(caption_prompt(SCENE), *texts)) == (0.0, -3.0)
    assert scores_of(judge, group(caption_prompt(OTHER), *texts)) == (-3.0, 0.0)


def test_swapped_truths_turn_the_scorecard() -> None:
    def card(first: Scene, second: Scene, answer: str) -> tuple[float | None, ...]:
        told = (
            group(caption_prompt(first, "a"), caption(SCENE)),
            group(caption_prompt(second, "b"), caption(OTHER)),
        )
        answers = Answers(told, (group(question_prompt(answer, scene="a"), "Yes."),))
        found = make_scorecard(answers, None, 10)
        return found.chair_i, found.recall, found.pope_accuracy, found.selection

    assert card(SCENE, OTHER, "yes") == (0.0, 1.0, 1.0, 1.0)
    assert card(OTHER, SCENE, "no") == (1.0, 0.0, 0.0, 0.0)


def test_the_reference_is_not_looked_at() -> None:
    """Only `truth` counts: a reference that flatters a wrong caption changes nothing."""
    judge = rules_judge(config.RulesJudge())
    wrong = caption(OTHER)
    flattered = replace(caption_prompt(SCENE), reference=wrong)
    assert scores_of(judge, group(flattered, wrong)) == scores_of(
        judge, group(caption_prompt(SCENE), wrong)
    )
