"""Several judges as one.

    sum        score_i = Σ_m weight_m · s_mi
    minimum    score_i = min_m weight_m · s_mi
    veto       of a completion that some member scores below its `veto_below`: score_i - (max - min + veto_cost), so
               below every completion without a veto, and in order among those with one

A group of which every completion is under a veto has no answer that may be chosen, and is dropped. So is one for which
a member has no verdict: what the others say is another score.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

from common import config
from common.protocols import Judge, JudgeError
from common.records import Dropped, RolloutGroup, Verdict
from reward.ranking import check_verdict

Answer: TypeAlias = Verdict | Dropped | JudgeError


class EnsembleJudge:
    """Asks its members side by side. `judges` are theirs, in order."""

    name = "ensemble"

    def __init__(self, settings: config.EnsembleJudge, judges: Sequence[Judge]) -> None:
        self._settings = settings
        self._judges = judges

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Answer]:
        """One verdict per group, in order; a Dropped or JudgeError of a member is the ensemble's."""
        calls = [judge.judge(groups) for judge in self._judges]
        by_member = await asyncio.gather(*calls)
        answers: list[Answer] = []
        for index, group in enumerate(groups):
            of_group = [answers_of_one[index] for answers_of_one in by_member]
            answers.append(self._combined(group, of_group))
        return answers

    def _combined(self, group: RolloutGroup, answers: Sequence[Answer]) -> Answer:
        verdicts: list[Verdict] = []
        for judge, answer in zip(self._judges, answers, strict=True):
            if not isinstance(answer, Verdict):
                return answer
            fault = check_verdict(group, answer)
            if fault is not None:
                return Dropped(group.id, fault.reason, f"{judge.name}: {fault.detail}")
            verdicts.append(answer)
        vetoes = [self._vetoes(verdicts, index) for index in _indices(group)]
        if all(vetoes):
            detail = f"every completion is under a veto: {'; '.join(vetoes)}"
            return Dropped(group.id, "vetoed", detail)
        scores = [self._score(verdicts, index) for index in _indices(group)]
        penalty = max(scores) - min(scores) + self._settings.veto_cost
        notes: list[str] = []
        for index, veto in enumerate(vetoes):
            if veto:
                scores[index] -= penalty
            notes.append(veto or self._note(verdicts, index))
        return Verdict(tuple(scores), tuple(notes))

    def _score(self, verdicts: Sequence[Verdict], index: int) -> float:
        weighted: list[float] = []
        for member, verdict in zip(self._settings.members, verdicts, strict=True):
            weighted.append(member.weight * verdict.scores[index])
        if self._settings.combine == "minimum":
            return min(weighted)
        return sum(weighted)

    def _vetoes(self, verdicts: Sequence[Verdict], index: int) -> str:
        """The first member that forbids a completion, in words; "" when none does."""
        members = zip(self._settings.members, self._judges, verdicts, strict=True)
        for member, judge, verdict in members:
            score = verdict.scores[index]
            if member.veto_below is not None and score < member.veto_below:
                return f"veto of {judge.name}: {score:g} < {member.veto_below:g}"
        return ""

    def _note(self, verdicts: Sequence[Verdict], index: int) -> str:
        """Every member's score of a completion, with its note."""
        parts: list[str] = []
        for judge, verdict in zip(self._judges, verdicts, strict=True):
            note = f" ({verdict.notes[index]})" if verdict.notes else ""
            parts.append(f"{judge.name} {verdict.scores[index]:g}{note}")
        return "; ".join(parts)


def _indices(group: RolloutGroup) -> range:
    return range(len(group.completions))
