"""Prompts of the shapes world: stable, paired with their questions, and blind to the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common.data import images
from common.data.images import ImageStore
from common.shapes.language import CAPTION_PROMPTS, caption
from common.shapes.prompts import caption_prompts, question_prompts
from common.shapes.render import render
from common.shapes.scenes import Scene, split_of
from common.worlds.questions import POPE_SPLITS


def text_of(prompt: object) -> str:
    (message,) = prompt.messages  # type: ignore[attr-defined]
    return "".join(part.text for part in message.parts)


def test_equal_arguments_give_equal_prompts_and_one_file_per_image(
    tmp_path: Path,
) -> None:
    store = ImageStore(tmp_path)
    first = caption_prompts("test", 12, 3, store)
    assert first == caption_prompts("test", 12, 3, store)
    assert first[-1].id == "shapes/test/00011"
    assert first[:5] == caption_prompts("test", 5, 3, store)
    files = list(tmp_path.rglob("*.png"))
    hashes = {prompt.images[0].sha256 for prompt in first}
    assert len(files) == len(hashes)


def test_picture_truth_and_reference_show_the_same_scene(tmp_path: Path) -> None:
    for prompt in caption_prompts("validation", 5, 0, ImageStore(tmp_path)):
        assert prompt.truth is not None
        scene = Scene.from_dict(prompt.truth)
        assert split_of(scene) == "validation"
        assert prompt.reference == caption(scene)
        (image,) = prompt.images
        assert images.read(image).tobytes() == render(scene).tobytes()


def test_evaluation_has_one_wording_and_training_all(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    tested = caption_prompts("test", 6, 0, store)
    trained = caption_prompts("train", 6, 0, store)
    assert set(map(text_of, tested)) == {CAPTION_PROMPTS[0]}
    assert set(map(text_of, trained)) == set(CAPTION_PROMPTS)


def test_questions_are_about_the_scenes_of_the_captions(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    captions = {prompt.id: prompt for prompt in caption_prompts("test", 6, 0, store)}
    asked = question_prompts("test", 6, 0, store, per_split=2)
    assert len(asked) == 6 * len(POPE_SPLITS) * 2
    assert len({prompt.id for prompt in asked}) == len(asked)
    for prompt in asked:
        truth = prompt.truth
        assert truth is not None
        caption_prompt = captions[truth["scene"]]
        assert caption_prompt.truth is not None
        scene = Scene.from_dict(caption_prompt.truth)
        assert prompt.id.startswith(f"{caption_prompt.id}/{truth['split']}/")
        assert prompt.images == caption_prompt.images
        is_there = truth["shape"] in scene.shapes
        answer = "yes" if is_there else "no"
        assert truth["answer"] == answer
        assert prompt.reference == f"{answer.capitalize()}."
        assert text_of(prompt) == truth["question"]


def test_questions_are_balanced_and_can_be_left_out(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    answers = []
    for prompt in question_prompts("test", 8, 0, store, per_split=2):
        assert prompt.truth is not None
        answers.append(prompt.truth["answer"])
    assert answers.count("yes") == answers.count("no") > 0
    assert question_prompts("test", 8, 0, store, per_split=0) == []


def test_noisy_references_are_the_training_text(tmp_path: Path) -> None:
    """The same pictures and questions; some references go on to name a usual partner that is not there."""
    store = ImageStore(tmp_path)
    clean = caption_prompts("train", 60, 0, store)
    noisy = caption_prompts("train", 60, 0, store, is_noisy=True)
    num_longer = 0
    for true, told in zip(clean, noisy, strict=True):
        assert true.reference is not None
        assert told.reference is not None
        assert told.reference.startswith(true.reference)
        assert replace(told, reference=true.reference) == true
        num_longer += told.reference != true.reference
    assert 0 < num_longer < 60
