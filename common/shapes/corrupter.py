"""True answers of the shapes world made wrong by rule: what a language model does for POVID, with the errors known.

    entity      names the usual partner of something present, although it is not there; as a further sentence or in
                place of a true object
    attribute   a wrong colour
    relation    a wrong place: one object moved, or two exchanged
    reasoning   the other answer to a yes/no question

A corrupted answer is written in the world's own language and is always judged worse than the true one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from common.povid_config import ErrorKind
from common.records import Dropped, Prompt
from common.seeding import derive_seed
from common.shapes.language import parse_caption, tell
from common.shapes.questions import answer_text, rank_absent
from common.shapes.scenes import COLOURS, NUM_CELLS, PLACES, Scene, SceneObject


def corrupt(prompt: Prompt, kind: ErrorKind, seed: int) -> str | Dropped:
    """The prompt's reference with an error of this kind, the same for equal seeds.

    Dropped reasons: `bad_truth` (truth is neither scene nor answer), `not_true` (the reference is not a true caption or
    answer in the world's own words), `kind_unsuited` (captions have no reasoning to corrupt, yes and no nothing else),
    `nothing_absent` (every shape is in the scene, so no entity can be invented).
    """
    truth, text = prompt.truth or {}, (prompt.reference or "").strip()
    if truth.get("answer") in ("yes", "no"):
        if text != answer_text(truth["answer"]):
            return Dropped(
                prompt.id,
                "not_true",
                f"expected {answer_text(truth['answer'])!r}, got {text[:100]!r}",
            )
        if kind != "reasoning":
            return Dropped(
                prompt.id, "kind_unsuited", f"{kind}: the answer is {text!r}"
            )
        return answer_text("no" if truth["answer"] == "yes" else "yes")
    try:
        scene = Scene.from_dict(truth)
    except (KeyError, TypeError, ValueError) as error:
        return Dropped(
            prompt.id,
            "bad_truth",
            f"expected a scene or an answer as truth: {error!r:.200}",
        )
    objects = objects_of(text, scene)
    if objects is None:
        return Dropped(
            prompt.id, "not_true", f"expected a true caption, got {text[:100]!r}"
        )
    rng = random.Random(derive_seed(seed, "povid/rules", prompt.id, kind))
    if kind == "entity":
        wrong = _with_entity(objects, scene, rng)
        return (
            Dropped(prompt.id, "nothing_absent", "every shape is there")
            if wrong is None
            else tell(wrong)
        )
    if kind == "attribute":
        return tell(_with_colour(objects, rng))
    if kind == "relation":
        return tell(_with_place(objects, rng))
    return Dropped(prompt.id, "kind_unsuited", f"{kind}: the answer is a caption")


def objects_of(text: str, scene: Scene) -> list[SceneObject] | None:
    """What a true caption tells of, in its order; None for any text that is not one in the world's own words."""
    told = {(o.shape, o.colour, o.place): o for o in scene.objects}
    found = [
        told.get((m.shape, m.colour or "", m.place or "")) for m in parse_caption(text)
    ]
    objects = [item for item in found if item is not None]
    return (
        objects
        if objects and len(set(objects)) == len(found) and tell(objects) == text
        else None
    )


def _with_entity(
    objects: Sequence[SceneObject], scene: Scene, rng: random.Random
) -> list[SceneObject] | None:
    absent = rank_absent(scene, "adversarial", rng)
    if not absent:
        return None
    if rng.random() < 0.5:
        victim = rng.randrange(len(objects))
        return [
            replace(o, shape=absent[0]) if index == victim else o
            for index, o in enumerate(objects)
        ]
    empty = [cell for cell in range(NUM_CELLS) if cell not in scene.cells]
    return [*objects, SceneObject(rng.choice(empty), absent[0], rng.choice(COLOURS))]


def _with_colour(
    objects: Sequence[SceneObject], rng: random.Random
) -> list[SceneObject]:
    victim = rng.choice(objects)
    wrong = replace(
        victim,
        colour=rng.choice([colour for colour in COLOURS if colour != victim.colour]),
    )
    return [wrong if o == victim else o for o in objects]


def _with_place(
    objects: Sequence[SceneObject], rng: random.Random
) -> list[SceneObject]:
    if len(objects) > 1 and rng.random() < 0.5:
        left, right = rng.sample(objects, 2)
        cells = {left: right.cell, right: left.cell}
    else:
        victim = rng.choice(objects)
        cells = {
            victim: rng.choice(
                [cell for cell in range(len(PLACES)) if cell != victim.cell]
            )
        }
    return [replace(o, cell=cells.get(o, o.cell)) for o in objects]
