"""Prompts of world 2 as the records that the rest of the project works with.

    tabletop/train/00012              a conversation of the training text without its last answer
    tabletop/test/00012/caption       evaluation: a caption of the scene,
    tabletop/test/00012/popular/1     a yes/no question about it,
    tabletop/test/00012/colour        a question about one of its things,
    tabletop/test/00012/turns         and a conversation of two turns

The truth is the scene and what is asked; it is for judges, and no policy is ever shown it.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Any

from common.config.data import About, References
from common.data.images import ImageStore
from common.records import ImageRef, Message, Part, Prompt
from common.tabletop.conversations import (
    CAPTION,
    SHARES,
    Question,
    answer,
    ask,
    conversation,
    pope_questions,
)
from common.tabletop.render import render
from common.tabletop.scenes import (
    SLIPS,
    TRAIN_BIAS,
    Scene,
    slipped,
    split_scenes,
    stream_scenes,
)
from common.worlds.questions import POPE_SPLITS
from common.worlds.scenes import Split

WORLD = "tabletop"
ATTRIBUTES: tuple[About, ...] = ("colour", "place", "number")


def training_prompts(
    count: int,
    seed: int,
    store: ImageStore,
    references: References = "sft",
    about: Collection[About] = tuple(SHARES),
) -> list[Prompt]:
    """One prompt per biased training scene, drawn as the training text was. Images are put into `store`.

    Args:
        references: `sft` are answers as the training text has them, slips included; `clean` are true.
        about: what the last question may be about; scenes with another one are passed over until there are enough.
    """
    prompts: list[Prompt] = []
    scenes = stream_scenes("train", seed=seed, bias=TRAIN_BIAS)
    for index, scene in enumerate(scenes):
        if len(prompts) == count:
            break
        name = _name("train", index)
        rng = random.Random(f"{name}/{seed}")
        questions = conversation(scene, rng)
        if questions[-1].about not in about:
            continue
        told = slipped(scene, rng, SLIPS) if references == "sft" else scene
        image = store.add(render(scene))
        prompts.append(_prompt(name, name, scene, told, questions, image))
    return prompts


def caption_prompts(
    split: Split, count: int, seed: int, store: ImageStore
) -> list[Prompt]:
    """One caption prompt per unbiased scene, with a true reference."""
    prompts = []
    for name, scene in _scenes(split, count, seed):
        questions = [CAPTION]
        image = store.add(render(scene))
        prompts.append(_prompt(f"{name}/caption", name, scene, scene, questions, image))
    return prompts


def pope_prompts(
    split: Split,
    count: int,
    seed: int,
    store: ImageStore,
    per_split: int = 2,
) -> list[Prompt]:
    """Yes/no questions about the scenes of `caption_prompts`: up to `per_split` per POPE split, half of them "yes"."""
    prompts = []
    for name, scene in _scenes(split, count, seed):
        image = store.add(render(scene))
        for pope_split in POPE_SPLITS:
            asked = pope_questions(scene, pope_split, pairs=per_split // 2)
            for index, question in enumerate(asked):
                id = f"{name}/{pope_split}/{index}"
                prompts.append(_prompt(id, name, scene, scene, [question], image))
    return prompts


def attribute_prompts(
    split: Split, count: int, seed: int, store: ImageStore
) -> list[Prompt]:
    """A question about a colour, a place and a number of things of the scenes of `caption_prompts`."""
    prompts = []
    for name, scene in _scenes(split, count, seed):
        image = store.add(render(scene))
        rng = random.Random(f"{name}/{seed}/attributes")
        for about in ATTRIBUTES:
            question = ask(about, rng.choice(scene.kinds))
            prompts.append(
                _prompt(f"{name}/{about}", name, scene, scene, [question], image)
            )
    return prompts


def turn_prompts(
    split: Split, count: int, seed: int, store: ImageStore
) -> list[Prompt]:
    """Conversations of two turns: a question about a thing with its true answer, then one about the same or another."""
    prompts = []
    for name, scene in _scenes(split, count, seed):
        image = store.add(render(scene))
        rng = random.Random(f"{name}/{seed}/turns")
        first = ask(rng.choice(ATTRIBUTES), rng.choice(scene.kinds))
        adversarial = pope_questions(scene, "adversarial")
        last = rng.choice(
            [ask(rng.choice(ATTRIBUTES), rng.choice(scene.kinds)), *adversarial]
        )
        prompts.append(
            _prompt(f"{name}/turns", name, scene, scene, [first, last], image)
        )
    return prompts


def _scenes(split: Split, count: int, seed: int) -> list[tuple[str, Scene]]:
    scenes = split_scenes(split, count, seed=seed)
    return [(_name(split, index), scene) for index, scene in enumerate(scenes)]


def _name(split: Split, index: int) -> str:
    return f"{WORLD}/{split}/{index:05d}"


def _prompt(
    id: str,
    scene_name: str,
    scene: Scene,
    told: Scene,
    questions: Sequence[Question],
    image: ImageRef,
) -> Prompt:
    """The prompt that ends with the last question; answers and the reference are true in `told`."""
    messages = []
    for index, question in enumerate(questions):
        parts: tuple[Part, ...] = (Part("text", question.text),)
        # The picture stands in the first turn only.
        if index == 0:
            parts = (Part("image"), *parts)
        messages.append(Message("user", parts))
        if index < len(questions) - 1:
            said = Part("text", answer(question, told))
            messages.append(Message("assistant", (said,)))
    last = questions[-1]
    truth: dict[str, Any] = {"world": WORLD, "scene": scene_name, **scene.to_dict()}
    truth |= {"about": last.about, "kind": last.kind, "split": last.split}
    return Prompt(
        id=id,
        messages=tuple(messages),
        images=(image,),
        reference=answer(last, told),
        truth=truth,
    )
