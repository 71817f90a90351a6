"""Reads a prompt's truth: the scene, and what was asked about it. Judges and metrics read it here alone."""

from __future__ import annotations

from typing import cast, get_args

from common.config.data import About
from common.records import Prompt
from common.tabletop.conversations import Question
from common.tabletop.prompts import WORLD
from common.tabletop.scenes import KINDS, Scene
from common.worlds.questions import POPE_SPLITS
from common.worlds.truth import MissingTruth


def is_tabletop(prompt: Prompt) -> bool:
    """Whether the prompt says that it is one of this world."""
    return prompt.truth is not None and prompt.truth.get("world") == WORLD


def scene_of(prompt: Prompt) -> Scene:
    """The scene behind a prompt (MissingTruth when there is none)."""
    try:
        return Scene.from_dict(prompt.truth or {})
    except (KeyError, TypeError, ValueError) as error:
        raise MissingTruth(
            f"prompt {prompt.id}: expected a tabletop scene as truth, got {prompt.truth!r:.200}; "
            "use prompts of world 2 or another judge"
        ) from error


def question_of(prompt: Prompt) -> Question:
    """What the last turn asks (MissingTruth when the truth does not say)."""
    truth = prompt.truth or {}
    about, kind, split = truth.get("about"), truth.get("kind"), truth.get("split")
    is_known = about in get_args(About) and (kind in KINDS or about == "caption")
    if not is_known or split not in (None, *POPE_SPLITS):
        raise MissingTruth(
            f"prompt {prompt.id}: expected a truth with about in {get_args(About)} and a kind of {KINDS}, "
            f"got {truth!r:.200}; repair the row"
        )
    return Question("", cast(About, about), str(kind), split)
