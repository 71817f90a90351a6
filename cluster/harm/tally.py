"""What the groups of a step say about the policy that sampled them and about the judge: metrics of `metrics.jsonl`.

    completions/mean_length        tokens of a completion
    completions/length_ratio       of prompts that come back, where they are drawn by worth: mean length of a group over
                                   that of the prompt's first group since the run began or was resumed
    completions/cut_off_frac       completions that reached their token limit
    completions/distinct_texts     (different texts - 1) / (k - 1) of a group: 0 when all k say the same, 1 when none do
    completions/distinct_bigrams   the same for pairs of neighbouring words, which tells long answers apart:
                                   (bigrams of the group / mean bigrams of a completion - 1) / (k - 1); a text's begin
                                   and end count as words, so that answers of one word have bigrams as well
    judge/score                    the judge's score of a completion
    judge/spread                   best - worst score of a group's completions: how far the judge tells them apart
    judge/score/NAME               the same of each judge of an ensemble, and judge/spread/NAME
    judge/longer_wins              judged groups whose better completion has more tokens than the worse one
    judge/num_longer               groups that this rests on; those of equal length are left out
    judge/first_wins               what answers won that the judge was shown first, a mean over groups (`Verdict`)
    judge/num_ordered              groups that this rests on

A step is what settled since the step before. What no group says is absent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from cluster.run.outcome import GroupOutcome
from common.records import Completion, RolloutGroup

COUNTS = {
    "judge/longer_wins": "judge/num_longer",
    "judge/first_wins": "judge/num_ordered",
}
"""Share -> the number of groups that it rests on."""


class GroupTally:
    """Collects the groups of one step.

    Args:
        by_prompt: compare lengths prompt by prompt, since not all prompts come equally often.
    """

    def __init__(self, by_prompt: bool = False) -> None:
        self._by_prompt = by_prompt
        # Tokens of a completion, by prompt.
        self._first_lengths: dict[str, float] = {}
        self._values: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, outcome: GroupOutcome) -> None:
        """Count a group that has settled."""
        rollout = outcome.rollout
        # Online BDHS samples no group; what could not be sampled says nothing.
        if rollout is None:
            return
        self._add_completions(rollout)
        if self._by_prompt:
            self._compare_length(rollout)
        if len(rollout.completions) > 1:
            texts = [completion.text for completion in rollout.completions]
            self._values["completions/distinct_texts"].append(_distinct_texts(texts))
            distinct = _distinct_bigrams(texts)
            self._values["completions/distinct_bigrams"].append(distinct)
        self._add_verdict(outcome, rollout)

    def take(self) -> dict[str, float]:
        """The metrics of what was counted since the last call."""
        metrics: dict[str, float] = {}
        for name, values in self._values.items():
            metrics[name] = sum(values) / len(values)
            if name in COUNTS:
                metrics[COUNTS[name]] = float(len(values))
        self._values.clear()
        return metrics

    def _add_completions(self, rollout: RolloutGroup) -> None:
        for completion in rollout.completions:
            length = len(completion.token_ids)
            is_cut_off = completion.finish_reason == "length"
            self._values["completions/mean_length"].append(length)
            self._values["completions/cut_off_frac"].append(is_cut_off)

    def _compare_length(self, rollout: RolloutGroup) -> None:
        lengths = [len(completion.token_ids) for completion in rollout.completions]
        length = sum(lengths) / len(lengths)
        first = self._first_lengths.get(rollout.prompt.id)
        if first is None:
            self._first_lengths[rollout.prompt.id] = length
        elif first > 0:
            self._values["completions/length_ratio"].append(length / first)

    def _add_verdict(self, outcome: GroupOutcome, rollout: RolloutGroup) -> None:
        judged = outcome.judged
        if judged is None or judged.verdict is None:
            return
        self._add_scores("", judged.verdict.scores)
        for name, of_member in judged.verdict.members:
            self._add_scores(f"/{name}", of_member)
        first_wins = judged.verdict.first_wins
        if first_wins is not None:
            self._values["judge/first_wins"].append(first_wins)
        scores = judged.verdict.scores
        for chosen, rejected in zip(judged.chosen, judged.rejected, strict=True):
            # A policy gradient pairs all completions, equally good ones too.
            if scores[chosen] == scores[rejected]:
                continue
            better = rollout.completions[chosen]
            worse = rollout.completions[rejected]
            self._add_lengths(better, worse)
            # One comparison a group: those of one group depend on each other.
            return

    def _add_scores(self, name: str, scores: Sequence[float]) -> None:
        self._values[f"judge/score{name}"] += scores
        self._values[f"judge/spread{name}"].append(max(scores) - min(scores))

    def _add_lengths(self, better: Completion, worse: Completion) -> None:
        if len(better.token_ids) != len(worse.token_ids):
            longer_wins = len(better.token_ids) > len(worse.token_ids)
            self._values["judge/longer_wins"].append(longer_wins)


def _distinct_texts(texts: list[str]) -> float:
    num_distinct = len(set(texts))
    return (num_distinct - 1) / (len(texts) - 1)


def _distinct_bigrams(texts: list[str]) -> float:
    together: set[tuple[str, str]] = set()
    num_apart = 0
    for text in texts:
        # No word is empty, so this one is none of the text's.
        words = ["", *text.split(), ""]
        bigrams = set(pairwise(words))
        together |= bigrams
        num_apart += len(bigrams)
    mean_apart = num_apart / len(texts)
    return (len(together) / mean_apart - 1) / (len(texts) - 1)
