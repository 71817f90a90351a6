"""A judge by rules: the score of a completion is minus the cost of everything that is wrong with it, 0 is flawless.

What counts as wrong is a world's business: see `common/shapes/faults.py` for the rendered shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from common.protocols import JudgeError
from common.records import Completion, Dropped, Prompt, RolloutGroup, Verdict

Fault: TypeAlias = tuple[str, float]
"""What is wrong, for people, and its cost."""


@dataclass(frozen=True, slots=True)
class RulesJudge:
    """Scores by ground truth (`Prompt.truth`). Deterministic.

    Args:
        faults_of: everything wrong with one completion; raises JudgeError when the prompt has no usable truth.
    """

    faults_of: Callable[[Prompt, Completion], list[Fault]]
    name: str = "rules"

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        """One verdict per group, in order; a group without usable truth is dropped as `judge_failed`."""
        verdicts: list[Verdict | Dropped] = []
        for group in groups:
            try:
                verdict = self._judge_group(group)
                verdicts.append(verdict)
            except JudgeError as error:
                # Asking again would find the same truth missing, so this is final.
                detail = f"judge {self.name}: {error}"
                verdicts.append(Dropped(group.id, "judge_failed", detail))
        return verdicts

    def _judge_group(self, group: RolloutGroup) -> Verdict:
        scores: list[float] = []
        notes: list[str] = []
        for completion in group.completions:
            total_cost = 0.0
            complaints: list[str] = []
            for complaint, cost in self.faults_of(group.prompt, completion):
                total_cost += cost
                complaints.append(complaint)
            # Not -total_cost: a flawless text scores 0.0, not -0.0.
            score = 0.0 - total_cost
            note = "; ".join(complaints)
            scores.append(score)
            notes.append(note or "flawless")
        return Verdict(tuple(scores), tuple(notes))
