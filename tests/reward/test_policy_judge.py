"""The judge that sees, on the shipped policy: it looks at the picture, not at the truth."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from common import config
from common.data.images import ImageStore
from common.errors import UserError
from common.protocols import Judge
from common.records import Dropped, ImageRef, Prompt
from common.shapes.language import caption
from common.shapes.prompts import caption_prompts
from common.shapes.render import blank
from common.shapes.scenes import Scene, SceneObject, split_scenes
from reward.judges.factory import make_judge
from tests.reward.builders import completion, group
from tests.reward.judging import scores_of, verdict_of


@cache
def judge() -> Judge:
    torch.set_num_threads(1)
    return make_judge(config.PolicyJudge())


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    return caption_prompts("test", 40, 5, ImageStore(tmp_path_factory.mktemp("images")))


def test_a_judge_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    path = Path(shutil.copytree(config.PolicyJudge().path, tmp_path / "model"))
    (path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(
        UserError,
        match=r"^reward\.judge\.path .*: expected readable safetensors, got .*again$",
    ):
        make_judge(config.PolicyJudge(path=str(path)))


def test_it_denies_what_is_not_there_far_more_often_than_what_is(
    prompts: list[Prompt],
) -> None:
    """A caption of another scene claims absent objects; the true one does not. Chance is one half."""
    scenes = split_scenes("test", 40, seed=5)
    others = scenes[1:] + scenes[:1]
    num_better = 0
    for prompt, scene, other in zip(prompts, scenes, others, strict=True):
        rolled = group(prompt, caption(scene), caption(other))
        true, false = scores_of(judge(), rolled)
        num_better += true > false
    assert num_better >= 28


def test_the_pixels_decide(prompts: list[Prompt], tmp_path: Path) -> None:
    """With the picture blanked, verdicts change although text and truth are the same."""
    empty = ImageStore(tmp_path).add(blank())
    seen: list[float] = []
    unseen: list[float] = []
    for prompt in prompts:
        text = prompt.reference or ""
        blind = replace(prompt, images=(empty,))
        seen += scores_of(judge(), group(prompt, text))
        unseen += scores_of(judge(), group(blind, text))
    assert seen != unseen
    # The captions are true, so that doubts can only come from not seeing.
    assert sum(seen) > sum(unseen)


def test_the_truth_is_not_looked_at(prompts: list[Prompt]) -> None:
    other = Scene((SceneObject(2, "ring", "black"),), 9).to_dict()
    texts = (
        caption(split_scenes("test", 40, seed=5)[0]),
        "There is a black ring at the top right.",
    )
    expected = verdict_of(judge(), group(prompts[0], *texts))
    lied_to = replace(prompts[0], truth=other, reference="x")
    assert verdict_of(judge(), group(lied_to, *texts)) == expected


def test_repeated_cut_off_and_empty_claims_cost_one_each(prompts: list[Prompt]) -> None:
    scene = split_scenes("test", 40, seed=5)[0]
    once, twice = caption(scene), f"{caption(scene)} {caption(scene)}"
    rolled = group(prompts[0], once, twice, "Hello.")
    one, two, nothing = scores_of(judge(), rolled)
    assert two == one - len(scene.objects)
    assert nothing == -1.0
    cut = group(prompts[0], once)
    cut = replace(cut, completions=(completion(once, finish="length"),))
    assert scores_of(judge(), cut) == (one - 1,)


def test_a_picture_it_cannot_read_gives_no_verdict(prompts: list[Prompt]) -> None:
    lost = replace(prompts[0], images=(ImageRef("0" * 64, "/nowhere.png"),))
    dropped = verdict_of(judge(), group(lost, "There is a star."))
    assert isinstance(dropped, Dropped) and dropped.reason == "judge_failed"
    assert "nowhere" in dropped.detail
