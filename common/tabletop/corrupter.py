"""Makes the references of world 2 wrong by rule, as a language model does for POVID, with the error known.

    entity      the usual partner of something present, or else any absent kind, in the place of a thing or as one more
    attribute   a wrong colour or number
    relation    a thing in another place
    reasoning   the other one of yes and no; another colour, place or number

A caption is told again from a scene with the error in it, so that it is written in the world's own language.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from common.config.povid import ErrorKind
from common.records import Dropped, Prompt
from common.seeding import derive_seed
from common.tabletop.claims import compare
from common.tabletop.conversations import Question, absent_kinds, answer
from common.tabletop.language import caption
from common.tabletop.scenes import COLOURS, MAX_NUMBER, Scene, Thing
from common.tabletop.truth import question_of, scene_of
from common.worlds.scenes import NUM_CELLS
from common.worlds.truth import MissingTruth

CAPTION_KINDS: tuple[ErrorKind, ...] = ("entity", "attribute", "relation")


def corrupt(prompt: Prompt, kind: ErrorKind, seed: int) -> str | Dropped:
    """The prompt's reference with an error of this kind; equal seeds give equal errors.

    Dropped reasons: `bad_truth` (no scene, or nothing asked), `not_true` (the reference is not the true answer in the
    world's words, such as one with a slip), `kind_unsuited` (a caption has no reasoning to corrupt, other answers
    nothing else).
    """
    try:
        scene = scene_of(prompt)
        question = question_of(prompt)
    except MissingTruth as error:
        return Dropped(prompt.id, "bad_truth", str(error))
    true_answer = answer(question, scene)
    if prompt.reference != true_answer:
        detail = f"expected {true_answer!r:.100}, got {prompt.reference!r:.100}"
        return Dropped(prompt.id, "not_true", detail)
    is_caption = question.about == "caption"
    if is_caption != (kind in CAPTION_KINDS):
        return Dropped(prompt.id, "kind_unsuited", f"{kind}: about {question.about}")
    # By prompt, so that the error does not depend on which other prompts a set has.
    rng = random.Random(derive_seed(seed, "povid/tabletop", prompt.id, kind))
    match kind:
        case "entity":
            return caption(_with_entity(scene, rng))
        case "attribute":
            return caption(_changed(scene, rng.choice(scene.things), rng))
        case "relation":
            text = _moved(scene, rng)
            if text is None:
                return Dropped(prompt.id, "kind_unsuited", "no move is told")
            return text
        case _:
            return _other_answer(question, scene, rng)


def _with_entity(scene: Scene, rng: random.Random) -> Scene:
    """One thing's kind replaced by an absent one, or one thing more."""
    imagined = absent_kinds(scene, "adversarial", rng)[0]
    if rng.random() < 0.5:
        victim = rng.choice(scene.things)
        return _replaced(scene, victim, replace(victim, kind=imagined))
    cell = rng.choice(_free_cells(scene))
    more = Thing(cell, imagined, rng.choice(COLOURS), rng.randint(1, MAX_NUMBER))
    return _scene([*scene.things, more], scene)


def _changed(scene: Scene, victim: Thing, rng: random.Random) -> Scene:
    """One thing in another colour or number."""
    if rng.random() < 0.5:
        colours = [colour for colour in COLOURS if colour != victim.colour]
        return _replaced(scene, victim, replace(victim, colour=rng.choice(colours)))
    numbers = [n for n in range(1, MAX_NUMBER + 1) if n != victim.number]
    return _replaced(scene, victim, replace(victim, number=rng.choice(numbers)))


def _moved(scene: Scene, rng: random.Random) -> str | None:
    """The caption with one thing in a free cell, such that it says something wrong; None where no move is told.

    Of a second thing in a sentence the caption says only on which side of the first it is.
    """
    for victim in rng.sample(scene.things, len(scene.things)):
        cells = _free_cells(scene)
        rng.shuffle(cells)
        for cell in cells:
            moved = _replaced(scene, victim, replace(victim, cell=cell))
            text = caption(moved)
            if any(claim.wrong for claim in compare(text, scene).claims):
                return text
    return None


def _other_answer(question: Question, scene: Scene, rng: random.Random) -> str:
    thing = scene.thing(question.kind)
    if question.about == "yes_no":
        if thing is not None:
            without = [other for other in scene.things if other is not thing]
            return answer(question, _scene(without, scene))
        cell = rng.choice(_free_cells(scene))
        number = rng.randint(1, MAX_NUMBER)
        more = Thing(cell, question.kind, rng.choice(COLOURS), number)
        return answer(question, _scene([*scene.things, more], scene))
    assert thing is not None, "what is absent is asked about by yes or no"
    colours = [colour for colour in COLOURS if colour != thing.colour]
    numbers = [n for n in range(1, MAX_NUMBER + 1) if n != thing.number]
    other = Thing(
        cell=rng.choice(_free_cells(scene)),
        kind=thing.kind,
        colour=rng.choice(colours),
        number=rng.choice(numbers),
    )
    return answer(question, _replaced(scene, thing, other))


def _free_cells(scene: Scene) -> list[int]:
    taken = {thing.cell for thing in scene.things}
    return [cell for cell in range(NUM_CELLS) if cell not in taken]


def _replaced(scene: Scene, old: Thing, new: Thing) -> Scene:
    things = [new if thing is old else thing for thing in scene.things]
    return _scene(things, scene)


def _scene(things: Sequence[Thing], like: Scene) -> Scene:
    return Scene(tuple(sorted(things)), like.seed)
