"""What became of an admitted group, whatever its source, and how the journal tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.sampling.worth import worth
from common.records import Dropped, Judged, PreferencePair, RolloutGroup

NO_VERDICT = frozenset({"judge_failed", "bad_verdict"})
"""Reasons of groups that a judge was asked about in vain."""


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """The pairs of a group (with a policy gradient several), or the reason why it has none.

    `rollout` holds the judged completions. It is None when they could not be sampled, and for online BDHS, which asks
    no judge.
    """

    group_id: str
    pairs: tuple[PreferencePair, ...] = ()
    dropped: Dropped | None = None
    rollout: RolloutGroup | None = None
    judged: Judged | None = None

    @classmethod
    def of_judged(
        cls,
        rollout: RolloutGroup,
        judged: Judged,
    ) -> GroupOutcome:
        """A group with what the reward worker made of it."""
        return cls(
            rollout.id,
            judged.pairs,
            judged.dropped,
            rollout,
            judged,
        )

    @classmethod
    def of_bdhs(
        cls,
        group_id: str,
        result: PreferencePair | Dropped,
    ) -> GroupOutcome:
        """A group that was sampled by BDHS."""
        if isinstance(result, Dropped):
            return cls(group_id, dropped=result)
        return cls(group_id, pairs=(result,))

    @property
    def worth(self) -> float | None:
        """How much a group like this teaches, 0-1; see `cluster.sampling.worth`. None where nobody could judge it."""
        if self.dropped is not None:
            return None if self.dropped.reason in NO_VERDICT else 0.0
        if self.judged is None or self.judged.verdict is None:
            return None
        return worth(self.judged.verdict.scores)

    def journal_fields(self) -> dict[str, Any]:
        """What was asked, texts and their weight versions, the verdict, and the outcome."""
        return {**self._asked(), **self._texts(), **self._verdict(), **self._result()}

    def _asked(self) -> dict[str, Any]:
        """The prompt, and the hashes of its images."""
        prompt = None
        if self.rollout is not None:
            prompt = self.rollout.prompt
        elif self.pairs:
            prompt = self.pairs[0].prompt
        if prompt is None:
            return {}
        return {"prompt": prompt.id, "images": [ref.sha256 for ref in prompt.images]}

    def _texts(self) -> dict[str, Any]:
        texts: list[str] = []
        versions: list[int | None] = []
        if self.rollout is not None:
            for completion in self.rollout.completions:
                texts.append(completion.text)
                versions.append(completion.min_weight_version)
        else:
            # Online BDHS samples the rejected answers only.
            for pair in self.pairs:
                texts.append(pair.rejected.text)
                versions.append(pair.weight_version)
        if not texts:
            return {}
        return {"completions": texts, "weight_versions": versions}

    def _verdict(self) -> dict[str, Any]:
        """Scores and notes of the judge; which completions became the sides of the pairs."""
        judged = self.judged
        if judged is None or judged.verdict is None:
            return {}
        return {
            "verdict": judged.verdict.scores,
            "notes": judged.verdict.notes,
            "chosen": judged.chosen,
            "rejected": judged.rejected,
        }

    def _result(self) -> dict[str, Any]:
        if self.dropped is not None:
            return {"outcome": self.dropped.reason, "detail": self.dropped.detail}
        scores_by_id: dict[str, Any] = {}
        # What the staleness of the pairs counts from; other completions of the group may be older.
        versions: list[int | None] = []
        for pair in self.pairs:
            scores_by_id[pair.id] = pair.scores
            versions.append(pair.weight_version)
        # Pairs of a policy gradient have ids of their own; every other pair has its group's.
        if list(scores_by_id) == [self.group_id]:
            scores = scores_by_id[self.group_id]
            return {"outcome": "pair", "scores": scores, "pair_versions": versions}
        return {"outcome": "pair", "pairs": scores_by_id, "pair_versions": versions}
