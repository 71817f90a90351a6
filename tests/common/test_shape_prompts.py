"""Prompts of the shapes world: stable, paired with their questions, and blind to the truth."""

from __future__ import annotations

from pathlib import Path

from common.data import images
from common.data.images import ImageStore
from common.shapes.language import CAPTION_PROMPTS, caption
from common.shapes.prompts import caption_prompts, question_prompts
from common.shapes.questions import POPE_SPLITS
from common.shapes.render import render
from common.shapes.scenes import Scene, split_of


def text_of(prompt: object) -> str:
    (message,) = prompt.messages  # type: ignore[attr-defined]
    return "".join(part.text for part in message.parts)


def test_equal_arguments_give_equal_prompts_and_one_file_per_image(
    tmp_path: Path,
) -> None:
    store = ImageStore(tmp_path)
    first = caption_prompts("test", 12, 3, store)
    assert first == caption_prompts("test", 12, 3, store)
    assert [prompt.id for prompt in first][-1] == "shapes/test/00011"
    assert first[:5] == caption_prompts("test", 5, 3, store)
    assert len(list(tmp_path.rglob("*.png"))) == len(
        {prompt.images[0].sha256 for prompt in first}
    )


def test_picture_truth_and_reference_show_the_same_scene(tmp_path: Path) -> None:
    for prompt in caption_prompts("validation", 5, 0, ImageStore(tmp_path)):
        assert prompt.truth is not None
        scene = Scene.from_dict(prompt.truth)
        assert split_of(scene) == "validation"
        assert prompt.reference == caption(scene)
        assert images.read(prompt.images[0]).tobytes() == render(scene).tobytes()


def test_evaluation_has_one_wording_and_training_all(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    assert {text_of(prompt) for prompt in caption_prompts("test", 6, 0, store)} == {
        CAPTION_PROMPTS[0]
    }
    assert {text_of(prompt) for prompt in caption_prompts("train", 6, 0, store)} == set(
        CAPTION_PROMPTS
    )


def test_questions_are_about_the_scenes_of_the_captions(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    captions = {prompt.id: prompt for prompt in caption_prompts("test", 6, 0, store)}
    asked = question_prompts("test", 6, 0, store, per_split=2)
    assert len(asked) == 6 * len(POPE_SPLITS) * 2
    assert len({prompt.id for prompt in asked}) == len(asked)
    for prompt in asked:
        assert prompt.truth is not None
        truth, about = prompt.truth, captions[prompt.truth["scene"]]
        assert about.truth is not None
        assert prompt.id.startswith(f"{about.id}/{truth['split']}/")
        assert prompt.images == about.images
        assert (truth["answer"] == "yes") == (
            truth["shape"] in Scene.from_dict(about.truth).shapes
        )
        assert prompt.reference == f"{truth['answer'].capitalize()}."
        assert text_of(prompt) == truth["question"]


def test_questions_are_balanced_and_can_be_left_out(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    said = [
        prompt.truth["answer"]
        for prompt in question_prompts("test", 8, 0, store, 2)
        if prompt.truth
    ]
    assert said.count("yes") == said.count("no")
    assert question_prompts("test", 8, 0, store, 0) == []
