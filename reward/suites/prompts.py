"""Any held-out prompts: what a judge says of the answers, how long they are, and how many were cut.

win_rate     (wins + ½ ties) / comparisons with the start policy's answer to the same prompt
lc_win_rate  the same at equal length, see `reward.suites.length_control`
judge_score  the judge's mean score. It is taken from the same comparisons: a judge sees both answers at once, and is
             asked nothing more. The start policy's is the score of the other answer
mean_length  words per answer
truncated    share of answers that `rollout.max_tokens` cut
"""

from __future__ import annotations

from common import config
from common.data.images import ImageStore
from common.data.prompt_sources import load_split
from common.data.words import words
from common.evaluation import (
    Comparison,
    Measurement,
    MetricInfo,
    Split,
    SuiteAnswers,
    TaskPrompts,
)
from common.records import Dropped, RolloutGroup
from common.seeding import derive_seed
from reward.suites.base import BaseSuite
from reward.suites.bootstrap import (
    Array,
    Columns,
    columns_of,
    draw,
    estimate,
    intervals_of,
    ratio,
    resample,
)
from reward.suites.length_control import WIN_RATES, add_equal_length_wins
from reward.suites.scorecard import described
from reward.suites.wins import (
    WIN_COUNTS,
    tie_with_itself,
    win_counts,
    win_of,
    win_rate,
)

ANSWERS = "answers"

METRICS = {
    "win_rate": MetricInfo(
        "win rate", "higher", "against the start policy", against_start=True
    ),
    "lc_win_rate": MetricInfo(
        "win rate, equal length",
        "higher",
        "against the start policy, length taken out",
        against_start=True,
    ),
    "judge_score": MetricInfo(
        "judge score",
        "higher",
        "mean, given in the comparison with the start policy's answer",
        against_start=True,
    ),
    "truncated": MetricInfo("cut", "lower", "answers cut at rollout.max_tokens"),
    "mean_length": MetricInfo("length", "", "words per answer", digits=1),
}

NOTHING_ANSWERED = (
    "no prompt was answered; data.test, data.validation or the suite name them"
)

_COLUMNS = ("answers", "words", "truncated", "score", *WIN_COUNTS)


class PromptsSuite(BaseSuite):
    """A `common.protocols.Suite` of prompts that the user holds out."""

    metrics = METRICS
    selecting_metric = "win_rate"
    compared_tasks = (ANSWERS,)
    shown_tasks = (ANSWERS,)
    unit = "prompts"

    def __init__(self, settings: config.PromptsSuite, data: config.Data) -> None:
        """`data` has the prompts of the splits that the suite names none of."""
        self.name = settings.name
        self._paths = {"validation": settings.validation, "test": settings.test}
        self._limit = settings.limit
        self._data = data

    def prompts(
        self,
        split: Split,
        store: ImageStore,
        dropped: list[Dropped],
    ) -> TaskPrompts:
        """The first prompts of the split."""
        data = self._data
        path = self._paths[split]
        if path is not None:
            data = data.model_copy(update={split: config.PromptFile(path=path)})
        prompts = load_split(data, split, store, dropped)
        return {ANSWERS: prompts[: self._limit]}

    def measure(
        self,
        answers: SuiteAnswers,
        comparison: Comparison | None,
        num_samples: int,
    ) -> Measurement:
        """See `common.protocols.Suite`. A row is a prompt: its answer and its comparison."""
        rows: dict[str, dict[str, float]] = {}
        for group in answers.tasks.get(ANSWERS, ()):
            rows[group.prompt.id] = _answer_row(group)
        if comparison is not None:
            _add_comparison(rows, comparison)
        columns = columns_of(rows.values(), _COLUMNS)
        values = estimate(columns, _statistic)
        seed = derive_seed("scorecard", self.name)
        resampled = resample(columns, _statistic, num_samples, seed)
        missing: dict[str, str] = {}
        if comparison is None:
            tie_with_itself(values, resampled, num_samples, WIN_RATES)
        elif columns["compared"].any():
            draws = draw(len(rows), num_samples, seed)
            add_equal_length_wins(values, resampled, missing, rows.values(), draws)
        if not rows:
            values, resampled = {}, {}
            missing = dict.fromkeys(METRICS, NOTHING_ANSWERED)
        num_compared = int(columns["compared"].sum())
        return Measurement(
            metrics=described(values, intervals_of(resampled), METRICS),
            counts={
                "num_answers": len(rows),
                "num_truncated": int(columns["truncated"].sum()),
                "num_compared": num_compared,
            },
            dropped={},
            summary=f"{len(rows)} answers, {num_compared} compared; 95 % bootstrap intervals over prompts",
            resampled=resampled,
            missing=missing,
        )


def _answer_row(group: RolloutGroup) -> dict[str, float]:
    completion = group.completions[0]
    return {
        "answers": 1,
        "words": len(words(completion.text)),
        "truncated": int(completion.finish_reason == "length"),
    }


def _add_comparison(rows: dict[str, dict[str, float]], comparison: Comparison) -> None:
    """The verdicts, and how long the start policy's answers are, into the rows of their prompts."""
    for group in comparison.start.tasks.get(ANSWERS, ()):
        if group.prompt.id in rows:
            rows[group.prompt.id]["start_words"] = _answer_row(group)["words"]
    for prompt_id, verdict in comparison.verdicts.items():
        row = rows[prompt_id]
        row.update(win_counts(win_of(verdict)))
        row["score"] = verdict.scores[0]


def _statistic(totals: Columns) -> dict[str, Array]:
    answers = totals["answers"]
    metrics = {
        "truncated": ratio(totals["truncated"], answers),
        "mean_length": ratio(totals["words"], answers),
    }
    # Nothing compared is no win rate, and not one of 0.
    if totals["compared"].any():
        metrics |= win_rate(totals)
        metrics["judge_score"] = ratio(totals["score"], totals["compared"])
    return metrics
