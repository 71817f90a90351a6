"""Small records for the tests of judges and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from common.records import Completion, Message, Part, Prompt, RolloutGroup
from common.shapes.scenes import Scene, SceneObject

RED_CIRCLE = SceneObject(0, "circle", "red")
BLUE_STAR = SceneObject(4, "star", "blue")
SCENE = Scene((RED_CIRCLE, BLUE_STAR), 1)
"""A red circle at the top left and a blue star at the center."""

TRUE = "There is a red circle at the top left. There is a blue star at the center."
"""The flawless caption of `SCENE`."""


def prompt(truth: Mapping[str, Any] | None = None, id: str = "p") -> Prompt:
    return Prompt(
        id, (Message("user", (Part("text", "Describe the image."),)),), (), truth=truth
    )


def caption_prompt(scene: Scene = SCENE, id: str = "p") -> Prompt:
    return prompt(scene.to_dict(), id)


def question_prompt(
    answer: str, split: str = "random", scene: str = "p", id: str = "q"
) -> Prompt:
    return prompt(
        {
            "question": "Is there a star?",
            "answer": answer,
            "split": split,
            "scene": scene,
        },
        id,
    )


def completion(
    text: str, version: int = 0, finish: Literal["stop", "length"] = "stop"
) -> Completion:
    """Token ids are the text's code points, so that different texts have different tokens."""
    return Completion(tuple(map(ord, text)), text, version, version, finish)


def group(
    prompt: Prompt, *texts: str, id: str = "g", versions: Sequence[int] = ()
) -> RolloutGroup:
    numbers = versions or [0] * len(texts)
    return RolloutGroup(
        id, prompt, (1, 2, 3), 0, tuple(map(completion, texts, numbers))
    )
