"""Questions about a table and their answers, and the conversations that the policy learns and is aligned on.

One distribution serves the training text and the prompts of all methods. What it asks about is drawn first, from the
kinds present alone; the answers follow from a scene. So a conversation can be answered from the scene as a careless
writer saw it, or from the truth.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from common.config.data import About
from common.tabletop.language import CAPTION_PROMPTS, caption, noun, plural, verb
from common.tabletop.scenes import (
    KINDS,
    NUMBERS,
    TRAIN_BIAS,
    USUAL,
    Scene,
    split_scenes,
)
from common.worlds.answers import WORDS
from common.worlds.questions import POPE_SPLITS, PopeSplit, rank_absent

SHARES: dict[About, float] = {
    "caption": 0.4,
    "yes_no": 0.3,
    "colour": 0.1,
    "place": 0.1,
    "number": 0.1,
}
"""Of the first turns; later ones are questions in the same shares."""
SEVERAL_TURNS = 0.25
MAX_TURNS = 3


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the words, what it is about, the kind it asks for, and the POPE split of a yes/no question."""

    text: str
    about: About
    kind: str = ""
    split: PopeSplit | None = None


CAPTION = Question(CAPTION_PROMPTS[0], "caption")
"""The request of evaluations."""


def ask(about: About, kind: str, split: PopeSplit | None = None) -> Question:
    """The question about a kind."""
    texts: dict[About, str] = {
        "yes_no": f"Is there {article(kind)} {kind} on the table?",
        "colour": f"What colour is the {kind}?",
        "place": f"Where is the {kind}?",
        "number": f"How many {kind}s are there?",
    }
    return Question(texts[about], about, kind, split)


def answer(question: Question, scene: Scene) -> str:
    """The answer that is true in a scene."""
    if question.about == "caption":
        return caption(scene)
    kind = question.kind
    thing = scene.thing(kind)
    if thing is None:
        return f"{WORDS['no']}, there is no {kind}."
    match question.about:
        case "yes_no":
            return f"{WORDS['yes']}, there {verb(thing.number)} {noun(thing)}."
        case "colour":
            return f"The {kind} is {thing.colour}."
        case "place":
            return f"The {kind} is at the {thing.place}."
        case _:
            number = NUMBERS[thing.number - 1]
            named = plural(kind, thing.number)
            return f"There {verb(thing.number)} {number} {named}."


def article(kind: str) -> str:
    """ "a" or "an"."""
    return "an" if kind[0] in "aeiou" else "a"


def conversation(scene: Scene, rng: random.Random) -> list[Question]:
    """The questions of one conversation, a caption only as the first."""
    num_turns = 1
    if rng.random() < SEVERAL_TURNS:
        num_turns = rng.randint(2, MAX_TURNS)
    (about,) = rng.choices(list(SHARES), list(SHARES.values()))
    if about == "caption":
        first = Question(rng.choice(CAPTION_PROMPTS), "caption")
        return [first, *quiz(scene, rng, num_turns - 1)]
    return quiz(scene, rng, num_turns)


def quiz(scene: Scene, rng: random.Random, num_turns: int) -> list[Question]:
    """Questions that are no captions."""
    abouts = [about for about in SHARES if about != "caption"]
    shares = [SHARES[about] for about in abouts]
    questions = []
    for about in rng.choices(abouts, shares, k=num_turns):
        if about == "yes_no" and rng.random() < 0.5:
            split = rng.choice(POPE_SPLITS)
            kind = absent_kinds(scene, split, rng)[0]
            questions.append(ask("yes_no", kind, split))
        else:
            kind = rng.choice(scene.kinds)
            questions.append(ask(about, kind))
    return questions


def pope_questions(scene: Scene, split: PopeSplit, *, pairs: int = 1) -> list[Question]:
    """Up to `pairs` questions with the answer yes and as many with no."""
    rng = random.Random(f"{scene.layout}/{split}")
    present = rng.sample(scene.kinds, len(scene.kinds))
    absent = absent_kinds(scene, split, rng)
    questions = []
    # The shorter one ends it: as many yes as no.
    for yes, no in zip(present[:pairs], absent[:pairs], strict=False):
        questions.append(ask("yes_no", yes, split))
        questions.append(ask("yes_no", no, split))
    return questions


def absent_kinds(scene: Scene, split: PopeSplit, rng: random.Random) -> list[str]:
    """The absent kinds in the order in which to ask about them; ties are broken by `rng`."""
    absent = [kind for kind in KINDS if kind not in scene.kinds]
    partners = scene.absent_partners

    def companionship(kind: str) -> int:
        return _companionship(kind, partners, scene.kinds)

    return rank_absent(absent, split, rng, kind_counts, companionship)


def _companionship(kind: str, partners: Sequence[str], present: Sequence[str]) -> int:
    """2 for the usual partner of something present, 1 for an anchor whose partner is present, else 0."""
    if kind in partners:
        return 2
    return int(USUAL[kind].partner in present)


@cache
def kind_counts() -> Counter[str]:
    """How often each kind occurs in 2,000 training scenes."""
    counts: Counter[str] = Counter()
    for scene in split_scenes("train", 2000, seed=0, bias=TRAIN_BIAS):
        counts.update(scene.kinds)
    return counts
