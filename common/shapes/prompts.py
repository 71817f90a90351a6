"""Prompts of the shapes world: ask for a caption of a scene, or POPE's yes/no questions about the same scene.

    shapes/test/00012              caption prompt; truth = Scene.to_dict()
    shapes/test/00012/popular/1    a question about it; truth = {question, answer, split, shape, scene}

Equal arguments give equal prompts and equal image files. The truth is for judges; no policy is ever shown it.
"""

from __future__ import annotations

import random
from typing import Any

from common.data.images import ImageStore
from common.records import ImageRef, Message, Part, Prompt
from common.shapes.language import CAPTION_PROMPTS, caption, noisy_caption
from common.shapes.questions import answer_text, questions
from common.shapes.render import render
from common.shapes.scenes import Scene, split_scenes
from common.worlds.questions import POPE_SPLITS
from common.worlds.scenes import Split


def caption_prompts(
    split: Split,
    count: int,
    seed: int,
    store: ImageStore,
    is_noisy: bool = False,
) -> list[Prompt]:
    """One caption prompt per scene. Images are put into `store`.

    Training scenes take the wordings of the question in turn, the other splits always the first one.

    Args:
        is_noisy: references are captions as the policy's training text has them, not true ones.
    """
    num_wordings = len(CAPTION_PROMPTS) if split == "train" else 1
    scenes = split_scenes(split, count, seed=seed)
    prompts = []
    for index, scene in enumerate(scenes):
        name = _name(split, index)
        reference = caption(scene)
        if is_noisy:
            reference = noisy_caption(scene, random.Random(f"{name}/{seed}"))
        prompt = _prompt(
            id=name,
            text=CAPTION_PROMPTS[index % num_wordings],
            image=store.add(render(scene)),
            reference=reference,
            truth=scene.to_dict(),
        )
        prompts.append(prompt)
    return prompts


def question_prompts(
    split: Split,
    count: int,
    seed: int,
    store: ImageStore,
    per_split: int = 2,
) -> list[Prompt]:
    """Questions about the scenes of `caption_prompts`: up to `per_split` per POPE split, half "yes", half "no".

    `truth["scene"]` is the id of the scene's caption prompt.
    """
    scenes = split_scenes(split, count, seed=seed)
    prompts: list[Prompt] = []
    for index, scene in enumerate(scenes):
        name = _name(split, index)
        prompts += _questions_about(name, scene, store, per_split, seed)
    return prompts


def _questions_about(
    name: str,
    scene: Scene,
    store: ImageStore,
    per_split: int,
    seed: int,
) -> list[Prompt]:
    image = store.add(render(scene))
    prompts = []
    for pope_split in POPE_SPLITS:
        # A pair is a question with the answer yes and one with the answer no.
        num_pairs = per_split // 2
        asked = questions(scene, pope_split, pairs=num_pairs, seed=seed)
        for index, question in enumerate(asked):
            truth = {
                "question": question.text,
                "answer": question.answer,
                "split": pope_split,
                "shape": question.shape,
                "scene": name,
            }
            prompt = _prompt(
                id=f"{name}/{pope_split}/{index}",
                text=question.text,
                image=image,
                reference=answer_text(question.answer),
                truth=truth,
            )
            prompts.append(prompt)
    return prompts


def _name(split: Split, index: int) -> str:
    return f"shapes/{split}/{index:05d}"


def _prompt(
    id: str,
    text: str,
    image: ImageRef,
    reference: str,
    truth: dict[str, Any],
) -> Prompt:
    question = Part("text", text)
    message = Message("user", (Part("image"), question))
    return Prompt(
        id=id,
        messages=(message,),
        images=(image,),
        reference=reference,
        truth=truth,
    )
