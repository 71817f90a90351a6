"""The shapes world's judge: what a text says against what the scene holds. Deterministic, at most 0, 0 is flawless.

    caption    -(invented objects x hallucination_cost + wrong attributes x attribute_cost + missed objects x miss_cost)
    question   -(hallucination_cost for a false "yes", miss_cost for a false "no")
    both       one further hallucination_cost each for being cut off, and for a text that says nothing (no object
               claimed; neither yes nor no, which is also a missed answer), so that silence never beats one slip

A repeated object counts as invented: whoever says "a circle" twice claims two (see `common/shapes/claims.py`).
"""

from __future__ import annotations

import re

from common import config
from common.records import Completion, Prompt, RolloutGroup, Verdict
from common.shapes.claims import Claim, compare
from common.shapes.questions import Answer
from common.shapes.scenes import Scene
from common.shapes.truth import answer_of, is_question, scene_of


class RulesJudge:
    """Scores by ground truth (`Prompt.truth`); raises MissingTruth, a JudgeError, without it."""

    name = "rules"

    def __init__(self, costs: config.RulesJudge) -> None:
        self.costs = costs

    def judge(self, group: RolloutGroup) -> Verdict:
        """One score per completion; the note of each lists its faults, or says "flawless"."""
        found = [
            self._faults(group.prompt, completion) for completion in group.completions
        ]
        scores = tuple(0.0 - sum(cost for _, cost in faults) for faults in found)
        notes = tuple(
            "; ".join(note for note, _ in faults) or "flawless" for faults in found
        )
        return Verdict(scores, notes)

    def _faults(
        self, prompt: Prompt, completion: Completion
    ) -> list[tuple[str, float]]:
        """(what is wrong, its cost) for everything wrong with one completion."""
        if is_question(prompt):
            faults = self._answer_faults(completion.text, answer_of(prompt)[0])
        else:
            faults = self._caption_faults(completion.text, scene_of(prompt))
        if completion.finish_reason == "length":
            faults.append(("cut off", self.costs.hallucination_cost))
        return faults

    def _caption_faults(self, text: str, scene: Scene) -> list[tuple[str, float]]:
        costs = self.costs
        comparison = compare(text, scene)
        faults = []
        for claim in comparison.claims:
            if claim.kind in ("hallucinated", "repeated"):
                faults.append(
                    (f"{claim.kind} {_name(claim)}", costs.hallucination_cost)
                )
            faults += [
                (f"wrong {what} of the {claim.mention.shape}", costs.attribute_cost)
                for what in claim.wrong
            ]
        faults += [
            (f"missed {item.colour} {item.shape}", costs.miss_cost)
            for item in comparison.missed
        ]
        if not comparison.claims:
            faults.append(("names no object", costs.hallucination_cost))
        return faults

    def _answer_faults(self, text: str, truth: Answer) -> list[tuple[str, float]]:
        said = read_answer(text)
        if said == truth:
            return []
        if said is None:
            return [
                ("missed answer", self.costs.miss_cost),
                ("neither yes nor no", self.costs.hallucination_cost),
            ]
        return [
            (
                f"false {said}",
                self.costs.hallucination_cost
                if said == "yes"
                else self.costs.miss_cost,
            )
        ]


def read_answer(text: str) -> Answer | None:
    """The answer of the first sentence, None when it has none.

    Stricter than POPE's rule, for which anything that is no "no" is a "yes" and would pay for rambling.
    """
    words = re.findall(r"\w+", text.strip().split(".")[0].lower())
    if "no" in words or "not" in words:
        return "no"
    return "yes" if "yes" in words else None


def _name(claim: Claim) -> str:
    return " ".join(filter(None, (claim.mention.colour, claim.mention.shape)))
