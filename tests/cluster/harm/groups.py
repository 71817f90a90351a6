"""Groups that have settled, from a few texts and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cluster.run.outcome import GroupOutcome
from common.records import Completion, Prompt, RolloutGroup, Verdict
from reward.ranking import best_against_worst

PROMPT = Prompt("p", (), ())


def group(*texts: str, finish: Literal["stop", "length"] = "stop") -> RolloutGroup:
    """A token per character."""
    completions = [
        Completion(tuple(map(ord, text)), text, 0, 0, finish) for text in texts
    ]
    return RolloutGroup("g", PROMPT, (1,), 0, tuple(completions))


def judged(
    rollout: RolloutGroup, scores: Sequence[float], first_wins: float | None = None
) -> GroupOutcome:
    verdict = Verdict(tuple(scores), (), first_wins)
    return GroupOutcome.of_judged(rollout, best_against_worst(rollout, verdict, 0))
