"""What the checker of sentences is taught: half is true, half is false, and a reply gives nothing away of which."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import paper_table
from benchmarks.claim_checker import TRAINING_SEED, claim_pairs, is_true
from benchmarks.paper_arms import ARMS
from common.data.images import ImageStore
from common.records import PreferencePair, Prompt
from common.tabletop.prompts import caption_prompts
from common.tabletop.truth import scene_of

NUM_SCENES = 30


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def pairs(store: ImageStore) -> list[PreferencePair]:
    return claim_pairs("validation", NUM_SCENES, store)


def sentence_of(prompt: Prompt) -> str:
    return prompt.messages[0].parts[-1].text


def test_half_of_the_sentences_are_true(pairs: list[PreferencePair]) -> None:
    replies = Counter(pair.chosen.text for pair in pairs)
    # At least those about one error of the caption, two yes/no answers, a colour, a place and a number.
    assert replies["Yes"] == replies["No"] >= 6 * NUM_SCENES
    assert all(
        {pair.chosen.text, pair.rejected.text} == {"Yes", "No"} for pair in pairs
    )


def test_how_an_answer_begins_does_not_say_whether_it_is_true(
    pairs: list[PreferencePair],
) -> None:
    """A judge that denied every "No, there is no cup." would make the policy see things."""
    begun: Counter[tuple[str, str]] = Counter()
    for pair in pairs:
        first = sentence_of(pair.prompt).split()[0]
        begun[first, pair.chosen.text] += 1
    for first in ("Yes,", "No,", "The", "There"):
        assert begun[first, "Yes"] == begun[first, "No"] > 0


def test_a_sentence_of_a_caption_is_held_against_its_scene(
    pairs: list[PreferencePair], store: ImageStore
) -> None:
    scenes = {}
    for prompt in caption_prompts("validation", NUM_SCENES, TRAINING_SEED, store):
        scenes[prompt.id] = scene_of(prompt)
    num_checked = 0
    for pair in pairs:
        scene = scenes.get("/".join(pair.id.split("/")[:4]))
        if scene is not None:
            assert is_true(sentence_of(pair.prompt), scene) == (
                pair.chosen.text == "Yes"
            )
            num_checked += 1
    assert num_checked > 2 * NUM_SCENES


def test_no_checker_learns_from_a_scene_that_is_measured(store: ImageStore) -> None:
    """Other pictures than those of the suites, which have seed 0."""
    taught = claim_pairs("train", 5, store)
    measured = caption_prompts("test", 50, 0, store)
    seen = {image for pair in taught for image in pair.prompt.images}
    assert not seen & {image for prompt in measured for image in prompt.images}


def test_a_row_without_its_judge_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = argparse.Namespace(dir=tmp_path)
    with pytest.raises(SystemExit, match=r"run python -m benchmarks\.claim_checker"):
        paper_table.expect_as_asked("online-vlm", ARMS["online-vlm"], 0, settings)
