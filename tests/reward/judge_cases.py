"""One case per kind of judge, for the contract that all of them keep (`test_judge_contract.py`).

A new kind adds a `JudgeCase` here: how to make the judge, and a group whose first answer is better than its second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from common import config
from common.config import JudgeConfig
from common.data.images import ImageStore
from common.protocols import Judge
from common.records import ImageRef, Prompt, RolloutGroup, Verdict
from common.shapes.language import caption
from common.shapes.prompts import caption_prompts
from common.shapes.scenes import split_scenes
from common.worlds.policy import CHAT_TEMPLATE
from reward.judges.factory import make_judge
from tests.reward.benchmarks.published import coco_folder
from tests.reward.builders import TRUE, caption_prompt, group, prompt
from tests.reward.judging import verdict_of
from tests.reward.scripted_eye import seeing
from tests.tiny_judges import (
    cached,
    tiny_clip,
    tiny_seeing_value_model,
    tiny_text_reward_model,
)

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
        is_relative: a score depends on the other answers of the group.
    """

    name: str
    settings: Callable[[Path], JudgeConfig]
    group: Callable[[Path], RolloutGroup]
    unusable: Callable[[Path], RolloutGroup] | None = None
    judge: Callable[[], Judge] | None = None
    is_relative: bool = False

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


PAIRWISE = "{{ first }} > {{ second }}"
POINTWISE = "{{ answer }}"


def vlm(template: str, mode: str) -> Callable[[Path], JudgeConfig]:
    """A judge in engines; the contract puts a scripted eye in their place."""
    return lambda _: config.VlmJudge(
        path=config.SHAPES_POLICY,
        template=template,
        mode=mode,  # type: ignore[arg-type]
    )


def preferred_by_length(text: str) -> str:
    """The longer one, also where one of the two is empty."""
    first, _, second = text.partition(" >")
    difference = len(first.strip()) - len(second.strip())
    if difference == 0:
        return "Better: tie"
    return f"Better: {'A' if difference > 0 else 'B'}"


def grade_of_length(text: str) -> str:
    """The longer, the better."""
    return f"Score: {min(5, 1 + len(text) // 6)}"


def ensemble(folder: Path) -> JudgeConfig:
    number = config.AnswerJudge(rule="number")
    rules = config.Member(judge=user_judge("Longest", unit=0.01)(folder))
    return config.EnsembleJudge(
        members=(config.Member(judge=number, weight=2.0), rules)
    )


def annotated_captions(folder: Path) -> RolloutGroup:
    return group(prompt({"image_id": 1}), "A man and a dog on a bench.", "A bus.")


def chair(folder: Path) -> JudgeConfig:
    coco_folder(folder)
    synonyms = str(folder / "synonyms.txt")
    return config.ChairJudge(annotations=str(folder), synonyms=synonyms)


def model_judge(
    make: Callable[[Path], Path], section: type, **settings: object
) -> Callable[[Path], JudgeConfig]:
    """The settings of a tiny random model."""

    def settings_of(folder: Path) -> JudgeConfig:
        path = cached(make)
        return section(path=str(path), **settings)  # type: ignore[no-any-return]

    return settings_of


def tiny_text_model(folder: Path) -> Path:
    return tiny_text_reward_model(folder, CHAT_TEMPLATE)


def ranked(
    settings: Callable[[Path], JudgeConfig],
) -> Callable[[Path], RolloutGroup]:
    """Two captions in the order that a random model happens to rank them in."""

    @cache
    def judge() -> Judge:
        return make_judge(settings(Path()))

    def make(folder: Path) -> RolloutGroup:
        asked = seen_captions(folder)
        verdict = verdict_of(judge(), asked)
        assert isinstance(verdict, Verdict)
        first, second = asked.completions
        if verdict.scores[0] < verdict.scores[1]:
            first, second = second, first
        return replace(asked, completions=(first, second))

    return make


CLIP = model_judge(tiny_clip, config.ClipJudge)
TEXT_REWARD = model_judge(tiny_text_model, config.RewardModelJudge)
SEEN_REWARD = model_judge(
    tiny_seeing_value_model, config.RewardModelJudge, head="value"
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
    JudgeCase(
        "vlm pairwise",
        vlm(PAIRWISE, "pairwise"),
        lengths,
        judge=lambda: seeing(preferred_by_length, mode="pairwise")[0],
        is_relative=True,
    ),
    JudgeCase(
        "vlm pointwise",
        vlm(POINTWISE, "pointwise"),
        lengths,
        judge=lambda: seeing(grade_of_length, mode="pointwise")[0],
    ),
    JudgeCase("chair", chair, annotated_captions, without_truth),
    JudgeCase("clip", CLIP, ranked(CLIP), lost_picture),
    JudgeCase("text reward model", TEXT_REWARD, ranked(TEXT_REWARD)),
    JudgeCase("seeing reward model", SEEN_REWARD, ranked(SEEN_REWARD), lost_picture),
    JudgeCase("ensemble", ensemble, right_and_wrong, without_truth),
]
