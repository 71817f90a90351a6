"""Reads a prompt's truth: what is in the picture, or the right answer. Judges and metrics read it here alone."""

from __future__ import annotations

from typing import cast

from common.protocols import JudgeError
from common.records import Prompt
from common.shapes.questions import POPE_SPLITS, Answer, PopeSplit
from common.shapes.scenes import Scene


class MissingTruth(JudgeError):
    """The prompt has no usable truth; asking again cannot help."""


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


def group_of(prompt: Prompt) -> str:
    """Id of the scene that a prompt is about.

    Answers about one scene are not independent, so the bootstrap draws scenes, with all prompts about them.
    """
    truth = prompt.truth or {}
    # Questions name their scene by the id of its caption prompt, which names itself by its own.
    scene = truth.get("scene", prompt.id)
    return str(scene)
