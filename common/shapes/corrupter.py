"""Makes true answers of the shapes world wrong by rule, as a language model does for POVID, with the error known.

    entity      names the usual partner of something present, although it is not there; as a further sentence or in
                place of a true object
    attribute   a wrong colour
    relation    a wrong place: one object moved, or two exchanged
    reasoning   the other answer to a yes/no question

A corrupted answer is written in the world's own language, and every judge must score it lower than the true one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from common.config.povid import ErrorKind
from common.records import Dropped, Prompt
from common.seeding import derive_seed
from common.shapes.language import parse_caption, tell
from common.shapes.questions import absent_shapes, answer_text
from common.shapes.scenes import COLOURS, Scene, SceneObject
from common.worlds.answers import Answer
from common.worlds.scenes import NUM_CELLS

DETAIL_CHARS = 100
"""Length of a quoted answer in the detail of a drop."""


def corrupt(prompt: Prompt, kind: ErrorKind, seed: int) -> str | Dropped:
    """The prompt's reference with an error of this kind; equal seeds give equal errors.

    Dropped reasons: `bad_truth` (truth is neither scene nor answer), `not_true` (the reference is not a true caption or
    answer in the world's own words), `kind_unsuited` (captions have no reasoning to corrupt, yes and no nothing else),
    `nothing_absent` (every shape is in the scene, so no entity can be invented).
    """
    truth = prompt.truth or {}
    text = (prompt.reference or "").strip()
    if truth.get("answer") in ("yes", "no"):
        return _other_answer(prompt.id, truth["answer"], text, kind)
    try:
        scene = Scene.from_dict(truth)
    except (KeyError, TypeError, ValueError) as error:
        detail = f"expected a scene or an answer as truth: {error!r:.200}"
        return Dropped(prompt.id, "bad_truth", detail)
    objects = objects_of(text, scene)
    if objects is None:
        detail = f"expected a true caption, got {text[:DETAIL_CHARS]!r}"
        return Dropped(prompt.id, "not_true", detail)
    # By prompt, so that the error does not depend on which other prompts a set has.
    rng = random.Random(derive_seed(seed, "povid/rules", prompt.id, kind))
    if kind == "entity":
        changed = _with_entity(objects, scene, rng)
        if changed is None:
            return Dropped(prompt.id, "nothing_absent", "every shape is there")
    elif kind == "attribute":
        changed = _with_colour(objects, rng)
    elif kind == "relation":
        changed = _with_place(objects, rng)
    else:
        detail = f"{kind}: the answer is a caption"
        return Dropped(prompt.id, "kind_unsuited", detail)
    return tell(changed)


def _other_answer(
    prompt_id: str,
    answer: Answer,
    text: str,
    kind: ErrorKind,
) -> str | Dropped:
    """The false one of yes and no, or why this text cannot be made false."""
    expected = answer_text(answer)
    if text != expected:
        detail = f"expected {expected!r}, got {text[:DETAIL_CHARS]!r}"
        return Dropped(prompt_id, "not_true", detail)
    if kind != "reasoning":
        detail = f"{kind}: the answer is {text!r}"
        return Dropped(prompt_id, "kind_unsuited", detail)
    return answer_text("no" if answer == "yes" else "yes")


def objects_of(text: str, scene: Scene) -> list[SceneObject] | None:
    """The objects that a true caption tells of, in its order.

    None when the caption is not true, or is not in the world's own words: such a text could not be told again with one
    error in it and no other change.
    """
    object_by_words = {}
    for item in scene.objects:
        object_by_words[item.shape, item.colour, item.place] = item
    objects = []
    for mention in parse_caption(text):
        words = (mention.shape, mention.colour or "", mention.place or "")
        if words not in object_by_words:
            return None
        objects.append(object_by_words[words])
    # Then an error in one mention would contradict another one.
    has_repeats = len(set(objects)) < len(objects)
    if not objects or has_repeats:
        return None
    if tell(objects) != text:
        return None
    return objects


# The random draws of the three functions below, and their order, decide which corrupted answers a seed gives.


def _with_entity(
    objects: Sequence[SceneObject],
    scene: Scene,
    rng: random.Random,
) -> list[SceneObject] | None:
    """One object's shape replaced by an absent one, or one more object; None when no shape is absent."""
    absent = absent_shapes(scene, "adversarial", rng)
    if not absent:
        return None
    imagined = absent[0]
    if rng.random() < 0.5:
        victim = rng.randrange(len(objects))
        changed = list(objects)
        changed[victim] = replace(objects[victim], shape=imagined)
        return changed
    empty_cells = [cell for cell in range(NUM_CELLS) if cell not in scene.cells]
    cell = rng.choice(empty_cells)
    colour = rng.choice(COLOURS)
    return [*objects, SceneObject(cell, imagined, colour)]


def _with_colour(
    objects: Sequence[SceneObject],
    rng: random.Random,
) -> list[SceneObject]:
    """One object in another colour."""
    victim = rng.choice(objects)
    other_colours = list(COLOURS)
    other_colours.remove(victim.colour)
    recoloured = replace(victim, colour=rng.choice(other_colours))
    changed = list(objects)
    changed[objects.index(victim)] = recoloured
    return changed


def _with_place(
    objects: Sequence[SceneObject],
    rng: random.Random,
) -> list[SceneObject]:
    """Two objects with exchanged places, or one object moved, possibly onto another one."""
    if len(objects) > 1 and rng.random() < 0.5:
        first, second = rng.sample(objects, 2)
        new_cells = {first: second.cell, second: first.cell}
    else:
        victim = rng.choice(objects)
        other_cells = list(range(NUM_CELLS))
        other_cells.remove(victim.cell)
        new_cells = {victim: rng.choice(other_cells)}
    moved = []
    for item in objects:
        cell = new_cells.get(item, item.cell)
        moved.append(replace(item, cell=cell))
    return moved
