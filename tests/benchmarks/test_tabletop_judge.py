"""What the VLM judge of world 2's table is taught."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import paper_table
from benchmarks.paper_arms import ARMS, JUDGE, WORLDS
from benchmarks.tabletop_judge import question_pairs
from common.data.images import ImageStore
from common.tabletop.conversations import answer
from common.tabletop.prompts import caption_prompts
from common.tabletop.truth import question_of, scene_of

NUM_SCENES = 30


def test_true_answers_are_chosen_and_half_of_them_are_yes(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    begun: Counter[str] = Counter()
    pairs = question_pairs(NUM_SCENES, store)
    for pair in pairs:
        scene = scene_of(pair.prompt)
        assert pair.chosen.text == answer(question_of(pair.prompt), scene)
        replies = {
            text.split(",")[0] for text in (pair.chosen.text, pair.rejected.text)
        }
        assert replies == {"Yes", "No"}
        begun[pair.chosen.text.split(",")[0]] += 1
    assert begun["Yes"] == begun["No"] == 3 * NUM_SCENES
    # Other pictures than those of the suites, which have seed 0.
    taught = {image for pair in pairs for image in pair.prompt.images}
    for prompt in caption_prompts("test", 50, 0, store):
        assert not taught & set(prompt.images)


def test_the_row_asks_this_judge_and_not_the_start_policy() -> None:
    words = ARMS["online-vlm"].words_in(WORLDS["tabletop"])
    assert words.count("--reward.judge.path") == 1
    assert words[words.index("--reward.judge.path") + 1] == JUDGE


def test_a_row_without_its_judge_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = argparse.Namespace(dir=tmp_path)
    with pytest.raises(SystemExit, match=r"run python -m benchmarks\.tabletop_judge"):
        paper_table.expect_as_asked("online-vlm", ARMS["online-vlm"], 0, settings)
