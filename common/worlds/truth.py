"""What of a prompt's truth is read alike in every rendered world."""

from __future__ import annotations

from common.protocols import JudgeError
from common.records import Prompt


class MissingTruth(JudgeError):
    """The prompt has no usable truth; asking again cannot help."""


def group_of(prompt: Prompt) -> str:
    """Id of the scene that a prompt is about.

    Answers about one scene are not independent, so the bootstrap draws scenes, with all prompts about them.
    """
    truth = prompt.truth or {}
    # A prompt that names no scene is the one that its scene is named after.
    return str(truth.get("scene", prompt.id))
