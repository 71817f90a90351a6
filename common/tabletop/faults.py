"""Everything that is wrong with what a policy said about a table, and what it costs.

caption   a made-up or repeated thing: hallucination_cost; a wrong colour, number, place or relation: attribute_cost;
          a missed thing: miss_cost
yes/no    a false "yes": hallucination_cost; a false "no": miss_cost; in a right "yes" wrong details as in captions
other     a wrong colour, place or number: attribute_cost; none: miss_cost and hallucination_cost
all       one further hallucination_cost for being cut off, and for a text that says nothing
"""

from __future__ import annotations

from common.config import RulesJudge
from common.records import Completion, Prompt
from common.tabletop.claims import Claim, compare
from common.tabletop.conversations import Question
from common.tabletop.language import colour_in, number_in, place_in
from common.tabletop.scenes import Scene, Thing
from common.tabletop.truth import question_of, scene_of
from common.worlds.answers import read_answer


def faults_of(
    prompt: Prompt, completion: Completion, costs: RulesJudge
) -> list[tuple[str, float]]:
    """(what is wrong, its cost) for everything wrong with one completion.

    Raises:
        MissingTruth: the prompt's truth is no scene, or does not say what is asked.
    """
    scene = scene_of(prompt)
    question = question_of(prompt)
    text = completion.text
    match question.about:
        case "caption":
            faults = _caption_faults(text, scene, costs)
        case "yes_no":
            faults = _yes_no_faults(text, question, scene, costs)
        case _:
            faults = _attribute_faults(text, question, scene, costs)
    if completion.finish_reason == "length":
        faults.append(("cut off", costs.hallucination_cost))
    return faults


def is_right(text: str, question: Question, scene: Scene) -> bool:
    """Whether a text gives the true yes or no, colour, place or number that a question asks for."""
    thing = scene.thing(question.kind)
    if question.about == "yes_no":
        return read_answer(text) == ("no" if thing is None else "yes")
    return thing is not None and _said(text, question) == _true(thing, question)


def _said(text: str, question: Question) -> str | int | None:
    if question.about == "number":
        return number_in(text)
    return colour_in(text) if question.about == "colour" else place_in(text)


def _true(thing: Thing, question: Question) -> str | int:
    if question.about == "number":
        return thing.number
    return thing.colour if question.about == "colour" else thing.place


def _caption_faults(
    text: str, scene: Scene, costs: RulesJudge
) -> list[tuple[str, float]]:
    comparison = compare(text, scene)
    faults: list[tuple[str, float]] = []
    for claim in comparison.claims:
        faults += _claim_faults(claim, costs)
    for thing in comparison.missed:
        faults.append((f"missed {thing.colour} {thing.kind}", costs.miss_cost))
    if not comparison.claims:
        faults.append(("names nothing", costs.hallucination_cost))
    return faults


def _claim_faults(claim: Claim, costs: RulesJudge) -> list[tuple[str, float]]:
    kind = claim.mention.kind
    if claim.thing is None:
        return [(f"made up {kind}", costs.hallucination_cost)]
    if claim.repeated:
        return [(f"repeated {kind}", costs.hallucination_cost)]
    return [
        (f"wrong {part} of the {kind}", costs.attribute_cost) for part in claim.wrong
    ]


def _yes_no_faults(
    text: str, question: Question, scene: Scene, costs: RulesJudge
) -> list[tuple[str, float]]:
    said = read_answer(text)
    is_there = scene.thing(question.kind) is not None
    if said is None:
        return [
            ("missed answer", costs.miss_cost),
            ("neither yes nor no", costs.hallucination_cost),
        ]
    if said == "yes" and not is_there:
        return [("false yes", costs.hallucination_cost)]
    if said == "no" and is_there:
        return [("false no", costs.miss_cost)]
    faults: list[tuple[str, float]] = []
    for claim in compare(text, scene).claims:
        faults += _claim_faults(claim, costs)
    return faults


def _attribute_faults(
    text: str, question: Question, scene: Scene, costs: RulesJudge
) -> list[tuple[str, float]]:
    if _said(text, question) is None:
        return [
            ("missed answer", costs.miss_cost),
            (f"no {question.about}", costs.hallucination_cost),
        ]
    if is_right(text, question, scene):
        return []
    return [(f"wrong {question.about}", costs.attribute_cost)]
