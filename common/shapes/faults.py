"""Everything that is wrong with what a policy said about a scene, and what it costs.

    caption    an invented object: hallucination_cost; a wrong attribute: attribute_cost; a missed object: miss_cost
    question   a false "yes": hallucination_cost; a false "no": miss_cost
    both       one further hallucination_cost for being cut off, and for a text that says nothing (no object claimed;
               neither yes nor no, which is also a missed answer), so that silence never beats one slip

A repeated object counts as invented: whoever says "a circle" twice claims two (see `common/shapes/claims.py`).
"""

from __future__ import annotations

from common.config import RulesJudge
from common.records import Completion, Prompt
from common.shapes.claims import Claim, compare
from common.shapes.scenes import Scene
from common.shapes.truth import answer_of, is_question, scene_of
from common.worlds.answers import Answer, read_answer


def faults_of(
    prompt: Prompt, completion: Completion, costs: RulesJudge
) -> list[tuple[str, float]]:
    """(what is wrong, its cost) for everything wrong with one completion.

    Raises:
        MissingTruth: the prompt's truth is neither a scene nor a yes/no answer.
    """
    if is_question(prompt):
        true_answer, _ = answer_of(prompt)
        faults = _answer_faults(completion.text, true_answer, costs)
    else:
        faults = _caption_faults(completion.text, scene_of(prompt), costs)
    if completion.finish_reason == "length":
        faults.append(("cut off", costs.hallucination_cost))
    return faults


def _caption_faults(
    text: str, scene: Scene, costs: RulesJudge
) -> list[tuple[str, float]]:
    comparison = compare(text, scene)
    faults: list[tuple[str, float]] = []
    for claim in comparison.claims:
        if claim.kind in ("hallucinated", "repeated"):
            faults.append((f"{claim.kind} {_name(claim)}", costs.hallucination_cost))
        for attribute in claim.wrong:
            note = f"wrong {attribute} of the {claim.mention.shape}"
            faults.append((note, costs.attribute_cost))
    faults += [
        (f"missed {item.colour} {item.shape}", costs.miss_cost)
        for item in comparison.missed
    ]
    if not comparison.claims:
        faults.append(("names no object", costs.hallucination_cost))
    return faults


def _answer_faults(
    text: str, truth: Answer, costs: RulesJudge
) -> list[tuple[str, float]]:
    answer = read_answer(text)
    if answer == truth:
        return []
    if answer is None:
        return [
            ("missed answer", costs.miss_cost),
            ("neither yes nor no", costs.hallucination_cost),
        ]
    cost = costs.hallucination_cost if answer == "yes" else costs.miss_cost
    return [(f"false {answer}", cost)]


def _name(claim: Claim) -> str:
    """The object as it was claimed: "red circle", or "circle" without a colour."""
    mention = claim.mention
    return f"{mention.colour} {mention.shape}" if mention.colour else mention.shape
