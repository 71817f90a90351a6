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
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from common import config
from common.protocols import Judge, JudgeError
from common.records import Dropped, RolloutGroup, Verdict
from reward.judges.matches import mean_of_known
from reward.ranking import check_verdict

Answer: TypeAlias = Verdict | Dropped | JudgeError


class EnsembleJudge:
    """Asks its members side by side. `judges` are theirs, in order."""

    name = "ensemble"

    def __init__(self, settings: config.EnsembleJudge, judges: Sequence[Judge]) -> None:
        self._settings = settings
        self._judges = judges
        self._names = _told_apart([judge.name for judge in judges])

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Answer]:
        """One verdict per group, in order; a Dropped or JudgeError of a member is the ensemble's."""
        calls = []
        for judge in self._judges:
            call = judge.judge(groups)
            calls.append(call)
        by_member = await asyncio.gather(*calls)
        answers: list[Answer] = []
        for group, *of_group in zip(groups, *by_member, strict=True):
            answer = self._combined(group, of_group)
            answers.append(answer)
        return answers

    def _combined(
        self,
        group: RolloutGroup,
        answers: Sequence[Answer],
    ) -> Answer:
        """The answer of the ensemble from those of its members."""
        verdicts: list[Verdict] = []
        members = zip(
            self._judges,
            answers,
            strict=True,
        )
        for judge, answer in members:
            if not isinstance(answer, Verdict):
                return answer
            fault = check_verdict(group, answer)
            if fault is not None:
                detail = f"{judge.name}: {fault.detail}"
                return Dropped(group.id, fault.reason, detail)
            verdicts.append(answer)
        scores: list[float] = []
        vetoes: list[str] = []
        notes: list[str] = []
        for index in range(len(group.completions)):
            scores.append(self._score(verdicts, index))
            vetoes.append(self._veto(verdicts, index))
            notes.append(self._note(verdicts, index))
        if all(vetoes):
            reasons = "; ".join(vetoes)
            detail = f"every completion is under a veto: {reasons}"
            return Dropped(group.id, "vetoed", detail)
        spread = max(scores) - min(scores)
        penalty = spread + self._settings.veto_cost
        for index, veto in enumerate(vetoes):
            if veto:
                scores[index] -= penalty
                notes[index] = veto
        shares = [verdict.first_wins for verdict in verdicts]
        own_scores = [verdict.scores for verdict in verdicts]
        by_name = zip(self._names, own_scores, strict=True)
        return Verdict(
            tuple(scores), tuple(notes), mean_of_known(shares), tuple(by_name)
        )

    def _score(
        self,
        verdicts: Sequence[Verdict],
        index: int,
    ) -> float:
        """Of one completion, without vetoes."""
        weighted: list[float] = []
        members = self._settings.members
        for member, verdict in zip(members, verdicts, strict=True):
            score = verdict.scores[index]
            weighted.append(member.weight * score)
        if self._settings.combine == "minimum":
            return min(weighted)
        return sum(weighted)

    def _veto(
        self,
        verdicts: Sequence[Verdict],
        index: int,
    ) -> str:
        """The first member that forbids a completion, in words; "" when none does."""
        members = self._settings.members
        for member, judge, verdict in zip(
            members,
            self._judges,
            verdicts,
            strict=True,
        ):
            lowest = member.veto_below
            score = verdict.scores[index]
            if lowest is not None and score < lowest:
                return f"veto of {judge.name}: {score:g} < {lowest:g}"
        return ""

    def _note(
        self,
        verdicts: Sequence[Verdict],
        index: int,
    ) -> str:
        """Every member's score of a completion, with its note."""
        parts: list[str] = []
        for judge, verdict in zip(self._judges, verdicts, strict=True):
            score = verdict.scores[index]
            part = f"{judge.name} {score:g}"
            if verdict.notes:
                part += f" ({verdict.notes[index]})"
            parts.append(part)
        return "; ".join(parts)


def _told_apart(names: Sequence[str]) -> list[str]:
    """The second judge called `vlm` is `vlm-2`."""
    counts: Counter[str] = Counter()
    told_apart: list[str] = []
    for name in names:
        counts[name] += 1
        number = counts[name]
        told_apart.append(name if number == 1 else f"{name}-{number}")
    return told_apart
