"""Reads a prompt's truth: what is in the picture, or the right answer. Judges and metrics read it here alone."""

from __future__ import annotations

from typing import cast

from common.records import Prompt
from common.shapes.scenes import Scene
from common.worlds.answers import Answer
from common.worlds.questions import POPE_SPLITS, PopeSplit
from common.worlds.truth import MissingTruth


def is_question(prompt: Prompt) -> bool:
    """Whether the truth is a yes/no answer and not a scene."""
    return prompt.truth is not None and "answer" in prompt.truth


def scene_of(prompt: Prompt) -> Scene:
    """The scene behind a caption prompt (MissingTruth when there is none)."""
    try:
        return Scene.from_dict(prompt.truth or {})
    except (KeyError, TypeError, ValueError) as error:
        raise MissingTruth(
            f"prompt {prompt.id}: expected a scene as truth, got {prompt.truth!r:.200}; "
            "use prompts of the shapes world or another judge"
        ) from error


def answer_of(prompt: Prompt) -> tuple[Answer, PopeSplit]:
    """True answer and POPE split of a question prompt (MissingTruth when there is none)."""
    truth = prompt.truth or {}
    answer = truth.get("answer")
    split = truth.get("split")
    if answer not in ("yes", "no") or split not in POPE_SPLITS:
        raise MissingTruth(
            f"prompt {prompt.id}: expected a truth with answer yes or no and split in {POPE_SPLITS}, "
            f"got {truth!r:.200}; repair the row"
        )
    return cast(Answer, answer), cast(PopeSplit, split)
