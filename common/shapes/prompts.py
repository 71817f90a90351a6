"""Prompts of the shapes world: ask for a caption of a scene, or POPE's yes/no questions about the same scene.

    shapes/test/00012              caption prompt; truth = Scene.to_dict()
    shapes/test/00012/popular/1    a question about it; truth = {question, answer, split, shape, scene}

Equal arguments give equal prompts and equal image files. The truth is for judges; no policy is ever shown it.
"""

from __future__ import annotations

from typing import Any

from common.data.images import ImageStore
from common.records import ImageRef, Message, Part, Prompt
from common.shapes.language import CAPTION_PROMPTS, caption
from common.shapes.questions import POPE_SPLITS, answer_text, questions
from common.shapes.render import render
from common.shapes.scenes import Scene, Split, split_scenes


def caption_prompts(
    split: Split, count: int, seed: int, store: ImageStore
) -> list[Prompt]:
    """One caption prompt per scene. Training scenes take the wordings in turn, the other splits the first one."""
    wordings = CAPTION_PROMPTS if split == "train" else CAPTION_PROMPTS[:1]
    prompts = []
    for index, scene in enumerate(split_scenes(split, count, seed=seed)):
        prompt = _prompt(
            id=_name(split, index),
            text=wordings[index % len(wordings)],
            image=store.add(render(scene)),
            reference=caption(scene),
            truth=scene.to_dict(),
        )
        prompts.append(prompt)
    return prompts


def question_prompts(
    split: Split, count: int, seed: int, store: ImageStore, per_split: int = 2
) -> list[Prompt]:
    """Questions about the scenes of `caption_prompts`: up to `per_split` per POPE split, half "yes", half "no".

    `truth["scene"]` is the id of the scene's caption prompt.
    """
    prompts = []
    for index, scene in enumerate(split_scenes(split, count, seed=seed)):
        name = _name(split, index)
        prompts += _questions_about(name, scene, store, per_split, seed)
    return prompts


def _questions_about(
    name: str, scene: Scene, store: ImageStore, per_split: int, seed: int
) -> list[Prompt]:
    image = store.add(render(scene))
    prompts = []
    for pope_split in POPE_SPLITS:
        asked = questions(scene, pope_split, pairs=per_split // 2, seed=seed)
        for index, question in enumerate(asked):
            truth = {
                "question": question.text,
                "answer": question.answer,
                "split": pope_split,
                "shape": question.shape,
                "scene": name,
            }
            id = f"{name}/{pope_split}/{index}"
            reference = answer_text(question.answer)
            prompts.append(_prompt(id, question.text, image, reference, truth))
    return prompts


def _name(split: Split, index: int) -> str:
    return f"shapes/{split}/{index:05d}"


def _prompt(
    id: str, text: str, image: ImageRef, reference: str, truth: dict[str, Any]
) -> Prompt:
    message = Message("user", (Part("image"), Part("text", text)))
    return Prompt(id, (message,), (image,), reference, truth)
