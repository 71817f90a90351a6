"""One case per kind of judge, for the contract that all of them keep (`test_judge_contract.py`).

A new kind adds a `JudgeCase` here: how to make the judge, and a group whose first answer is better than its second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from common import config
from common.config import JudgeConfig
from common.data.images import ImageStore
from common.protocols import Judge
from common.records import ImageRef, Prompt, RolloutGroup
from common.shapes.language import caption
from common.shapes.prompts import caption_prompts
from common.shapes.scenes import split_scenes
from reward.judges.factory import make_judge
from tests.reward.builders import TRUE, caption_prompt, group, prompt

USER_CODE = '''\
class Longest:
    """Scores by length."""

    def __init__(self, unit=1.0):
        self.unit = unit

    def judge(self, group):
        return [len(completion.text) * self.unit for completion in group.completions]


class LongestTogether(Longest):
    async def judge(self, groups):
        return [super(LongestTogether, self).judge(group) for group in groups]


def longest(prompt, images, completions, label):
    return [float(len(text)) for text in completions]


def trl_longest(prompts, completions, **kwargs):
    return [float(len(completion[0]["content"])) for completion in completions]
'''


@dataclass(frozen=True)
class JudgeCase:
    """A kind of judge, and what it is asked about.

    Attributes:
        settings: of the judge; the folder takes files that it needs.
        group: whose first answer is better than its second; the folder takes pictures.
        unusable: a group that this judge has no verdict for; None when there is none.
        judge: takes the place of the factory's, for one that asks an engine or a server; it must be of `settings`.
    """

    name: str
    settings: Callable[[Path], JudgeConfig]
    group: Callable[[Path], RolloutGroup]
    unusable: Callable[[Path], RolloutGroup] | None = None
    judge: Callable[[], Judge] | None = None

    def make(self, folder: Path) -> Judge:
        """The judge."""
        if self.judge is not None:
            return self.judge()
        return make_judge(self.settings(folder))


def user_judge(name: str, **settings: object) -> Callable[[Path], JudgeConfig]:
    """The settings of something in `USER_CODE`, which is written into the folder."""

    def make(folder: Path) -> JudgeConfig:
        path = folder / "user_judge.py"
        path.write_text(USER_CODE)
        return config.PythonJudge(target=f"{path}:{name}", **settings)  # type: ignore[arg-type]

    return make


def captions(folder: Path) -> RolloutGroup:
    """A true caption against that of another scene."""
    return group(caption_prompt(), TRUE, "There is a green ring at the bottom.")


def seen_captions(folder: Path) -> RolloutGroup:
    """The same with a picture."""
    (seen,) = caption_prompts("test", 1, 5, ImageStore(folder))
    _, other = split_scenes("test", 2, seed=5)
    return group(seen, seen.reference or "", caption(other))


def lost_picture(folder: Path) -> RolloutGroup:
    (seen,) = caption_prompts("test", 1, 5, ImageStore(folder))
    lost = replace(seen, images=(ImageRef("0" * 64, str(folder / "nowhere.png")),))
    return group(lost, "There is a star.", "There is a ring.")


def without_truth(folder: Path) -> RolloutGroup:
    return group(prompt(), "a", "b")


def lengths(folder: Path) -> RolloutGroup:
    return group(prompt({"label": "x"}), "a long text", "short")


def right_and_wrong(folder: Path) -> RolloutGroup:
    return group(answered("42"), "It is 42.", "It is 43.")


def answered(reference: str) -> Prompt:
    return replace(prompt(), reference=reference)


def ensemble(folder: Path) -> JudgeConfig:
    number = config.AnswerJudge(rule="number")
    rules = config.Member(judge=user_judge("Longest", unit=0.01)(folder))
    return config.EnsembleJudge(
        members=(config.Member(judge=number, weight=2.0), rules)
    )


CASES = [
    JudgeCase("rules", lambda _: config.RulesJudge(), captions, without_truth),
    JudgeCase("policy", lambda _: config.PolicyJudge(), seen_captions, lost_picture),
    JudgeCase("python class", user_judge("Longest", unit=2), lengths),
    JudgeCase("python together", user_judge("LongestTogether"), lengths),
    JudgeCase("python function", user_judge("longest"), lengths, without_truth),
    JudgeCase("python trl", user_judge("trl_longest"), lengths),
    JudgeCase(
        "answer",
        lambda _: config.AnswerJudge(rule="number"),
        right_and_wrong,
        without_truth,
    ),
    JudgeCase("ensemble", ensemble, right_and_wrong, without_truth),
]
