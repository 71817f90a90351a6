"""What the suites of worlds with known scenes have in common: a table with a row per scene, and metrics of its columns.

A caption, all questions about its scene and its comparison with the start policy are redrawn together. Two policies
that answer the same scenes are measured with the same draws. What was never asked or said has no metric: 0 would read
as a measurement.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, TypeAlias

from common import config
from common.config.povid import ErrorKind
from common.evaluation import (
    Comparison,
    Measurement,
    MetricInfo,
    ShownAnswer,
    Split,
    SuiteAnswers,
    TaskPrompts,
)
from common.protocols import JudgeError
from common.records import Dropped, PreferencePair, Prompt, Response, RolloutGroup
from common.seeding import derive_seed
from common.worlds.truth import MissingTruth, group_of
from reward.suites.base import BaseSuite
from reward.suites.bootstrap import (
    Array,
    Columns,
    Statistic,
    columns_of,
    draw,
    estimate,
    intervals_of,
    ratio,
    resample,
)
from reward.suites.chair import CHAIR_COUNTS, caption_counts, chair
from reward.suites.length_control import WIN_RATES, add_equal_length_wins
from reward.suites.parts import PART_COUNTS, part_errors, part_infos
from reward.suites.pope import (
    POPE_COUNTS,
    POPE_SPLITS,
    Answer,
    answer_counts,
    parse_answer,
    parse_strictly,
    pope_by_split,
    pope_infos,
)
from reward.suites.scorecard import described
from reward.suites.wins import (
    WIN_COUNTS,
    tie_with_itself,
    win_counts,
    win_of,
    win_rate,
)

CAPTIONS, QUESTIONS = "captions", "questions"

Row: TypeAlias = Mapping[str, int]
"""What an answer adds to the counts of its scene."""
CountOf: TypeAlias = Callable[[RolloutGroup], Row]


def _against_start(label: str, meaning: str) -> MetricInfo:
    return MetricInfo(label, "higher", meaning, tasks=(CAPTIONS,), against_start=True)


ERROR_KINDS: tuple[ErrorKind, ...] = ("entity", "attribute", "relation")
"""Errors that a caption can be given, taken in turn."""
SEED = 0
"""The scenes of an evaluation are the same in every run, whatever its seed."""
METRICS: dict[str, MetricInfo] = {
    "chair_s": MetricInfo(
        "CHAIR_s", "lower", "captions that make something up", tasks=(CAPTIONS,)
    ),
    "chair_i": MetricInfo(
        "CHAIR_i", "lower", "mentions of things that are not there", tasks=(CAPTIONS,)
    ),
    "recall": MetricInfo(
        "recall", "higher", "true objects that are named", tasks=(CAPTIONS,)
    ),
    **part_infos((CAPTIONS,)),
    **pope_infos((QUESTIONS,)),
    "win_rate": _against_start("win rate", "against the start policy"),
    "lc_win_rate": _against_start(
        "win rate, equal length", "against the start policy, length taken out"
    ),
    "mean_length": MetricInfo(
        "length", "", "words per caption", digits=1, tasks=(CAPTIONS,)
    ),
    "selection": MetricInfo("", "higher", "F1 of naming objects", tasks=(CAPTIONS,)),
}
"""What tables show, in this order, and what picks a checkpoint."""


class WorldSuite(BaseSuite, ABC):
    """A `common.protocols.Suite` of scenes whose content is known; a world says how its answers are counted."""

    metrics: Mapping[str, MetricInfo] = METRICS
    selecting_metric = "selection"
    compared_tasks: Sequence[str] = (CAPTIONS,)
    shown_tasks: Sequence[str] = (CAPTIONS,)
    unit = "scenes"
    asked: ClassVar[Sequence[str]] = ()
    """Further shares of right answers: metric `NAME` of the columns `right/NAME` and `asked/NAME`."""

    def __init__(self, settings: config.ShapesSuite | config.TabletopSuite) -> None:
        self.name = settings.name
        # Both splits are disjoint from the training scenes, see common/worlds/scenes.py.
        self.num_scenes: Mapping[Split, int] = {
            "validation": settings.validation_scenes,
            "test": settings.test_scenes,
        }
        self.questions_per_scene = settings.questions_per_scene

    @abstractmethod
    def count_of(self, task: str) -> CountOf:
        """What counts an answer of a task. It raises a JudgeError when the truth is not known."""

    @abstractmethod
    def marked(self, prompt: Prompt, text: str) -> ShownAnswer:
        """The caption with its errors marked (MissingTruth when the prompt has no scene)."""

    @abstractmethod
    def corrupted(self, prompt: Prompt, kind: ErrorKind) -> str | Dropped:
        """A true caption with an error of this kind, or why the scene has no room for one."""

    def heldout_pairs(self, prompts: TaskPrompts, limit: int) -> list[PreferencePair]:
        """True captions over the same captions corrupted by rule, kinds of error in turn."""
        pairs: list[PreferencePair] = []
        for index, prompt in enumerate(prompts[CAPTIONS]):
            if len(pairs) == limit:
                break
            first_kind = index % len(ERROR_KINDS)
            pair = self._corrupted_pair(prompt, first_kind)
            # A scene may allow no error at all.
            if pair is not None:
                pairs.append(pair)
        return pairs

    def _corrupted_pair(self, prompt: Prompt, first_kind: int) -> PreferencePair | None:
        """The prompt's reference over the same text with an error of this kind, or of the next that there is."""
        kinds = (*ERROR_KINDS[first_kind:], *ERROR_KINDS[:first_kind])
        for kind in kinds:
            wrong_text = self.corrupted(prompt, kind)
            if isinstance(wrong_text, Dropped):
                continue
            return PreferencePair(
                id=f"{prompt.id}/{kind}",
                prompt=prompt,
                chosen=Response(prompt.reference or ""),
                rejected=Response(wrong_text),
                source="corrupted",
            )
        return None

    def show(self, prompt: Prompt, text: str) -> ShownAnswer:
        """The caption with its errors marked; plain when the prompt has no scene."""
        try:
            return self.marked(prompt, text)
        except MissingTruth:
            # Shown all the same: what cannot be judged can still be read.
            return ShownAnswer(text)

    def measure(
        self,
        answers: SuiteAnswers,
        comparison: Comparison | None,
        num_samples: int,
    ) -> Measurement:
        """See `common.protocols.Suite`."""
        rows, dropped = self._count(answers)
        if comparison is not None:
            self._add_comparison(rows, answers, comparison)
        columns = columns_of(rows.values(), self._column_names)
        totals: dict[str, int] = {}
        for name, column in columns.items():
            totals[name] = int(column.sum())
        statistic = self._statistic(totals)
        values = estimate(columns, statistic)
        seed = derive_seed("scorecard")
        resampled = resample(columns, statistic, num_samples, seed)
        missing: dict[str, str] = {}
        if comparison is None:
            tie_with_itself(values, resampled, num_samples, WIN_RATES)
        elif totals["compared"]:
            draws = draw(len(rows), num_samples, seed)
            add_equal_length_wins(values, resampled, missing, rows.values(), draws)
        counts = _answer_counts(totals)
        return Measurement(
            metrics=described(values, intervals_of(resampled), self.metrics),
            counts=counts,
            dropped=dropped,
            summary=_summary(counts),
            resampled=resampled,
            missing=missing,
        )

    def _count(
        self, answers: SuiteAnswers
    ) -> tuple[defaultdict[str, Counter[str]], dict[str, int]]:
        """Counts by scene, and the number of answers that cannot be counted, by reason."""
        rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
        dropped: Counter[str] = Counter()
        # The order of the rows decides which scene a bootstrap draw means.
        for task, groups in answers.tasks.items():
            count = self.count_of(task)
            for group in groups:
                try:
                    row = count(group)
                except JudgeError:
                    dropped["no_truth"] += 1
                    continue
                rows[group_of(group.prompt)].update(row)
        return rows, dict(dropped)

    def _add_comparison(
        self,
        rows: dict[str, Counter[str]],
        answers: SuiteAnswers,
        comparison: Comparison,
    ) -> None:
        """The verdicts on captions, and how long the start policy's captions are, into the rows of their scenes."""
        for group in answers.tasks.get(CAPTIONS, ()):
            verdict = comparison.verdicts.get(group.prompt.id)
            if verdict is not None:
                row = rows[group_of(group.prompt)]
                row.update(win_counts(win_of(verdict)))
        for group in comparison.start.tasks.get(CAPTIONS, ()):
            scene = group_of(group.prompt)
            # A scene of which this policy said nothing is no row of its table.
            if scene in rows:
                rows[scene]["start_words"] = num_words(group)

    @property
    def _column_names(self) -> list[str]:
        names = [*_pope_columns(""), *_pope_columns("strict_"), *CHAIR_COUNTS]
        names += [*PART_COUNTS, "truncated", *WIN_COUNTS]
        for name in self.asked:
            names += [right_column(name), asked_column(name)]
        return names

    def _statistic(self, counted: Mapping[str, int]) -> Statistic:
        """The metrics of those columns that hold anything; `counted` are the columns' totals."""
        splits: list[str] = []
        for split in POPE_SPLITS:
            if any(counted[pope_column(split, name)] for name in POPE_COUNTS):
                splits.append(split)

        def statistic(totals: Columns) -> dict[str, Array]:
            metrics: dict[str, Array] = {}
            if counted["captions"]:
                metrics |= chair(totals)
                metrics |= part_errors(totals, counted)
            metrics |= pope_by_split(totals, splits)
            for name in self.asked:
                asked = totals[asked_column(name)]
                if counted[asked_column(name)]:
                    metrics[name] = ratio(totals[right_column(name)], asked)
            if counted["compared"]:
                metrics |= win_rate(totals)
            return metrics

        return statistic


def caption_row(
    group: RolloutGroup,
    named: Sequence[str],
    present: Collection[str],
    claim_rows: Iterable[Row],
) -> Row:
    """What a caption adds to the counts of its scene.

    Args:
        named: what the caption says is there, repeats included.
        present: what is there.
        claim_rows: what each claim adds.
    """
    counts = Counter(caption_counts(named, present, num_words(group)))
    counts["truncated"] = int(group.completions[0].finish_reason == "length")
    for row in claim_rows:
        counts.update(row)
    return counts


def num_words(group: RolloutGroup) -> int:
    """Words of a group's first completion."""
    return len(group.completions[0].text.split())


def pope_row(text: str, true_answer: Answer, split: str) -> dict[str, int]:
    """What a yes/no answer adds to the counts of its POPE split, as the official script reads it and strictly."""
    official = answer_counts(parse_answer(text), true_answer)
    strict = answer_counts(parse_strictly(text), true_answer)
    row: dict[str, int] = {}
    for name in POPE_COUNTS:
        row[pope_column(split, name)] = official[name]
        row[pope_column(split, f"strict_{name}")] = strict[name]
    return row


def pope_column(split: str, count: str) -> str:
    """The form that `pope_by_split` reads."""
    return f"{split}/{count}"


def right_column(name: str) -> str:
    """The right answers behind a share of right answers."""
    return f"right/{name}"


def asked_column(name: str) -> str:
    """All answers behind it."""
    return f"asked/{name}"


def _pope_columns(prefix: str) -> Iterator[str]:
    for split in POPE_SPLITS:
        for name in POPE_COUNTS:
            yield pope_column(split, f"{prefix}{name}")


def _answer_counts(totals: Mapping[str, int]) -> dict[str, int]:
    return {
        "num_captions": totals["captions"],
        "num_truncated": totals["truncated"],
        "num_questions": sum(totals[name] for name in _pope_columns("")),
        "num_compared": totals["compared"],
    }


def _summary(counts: Mapping[str, int]) -> str:
    return (
        f"{counts['num_captions']} captions and {counts['num_questions']} yes/no questions; 95 % bootstrap intervals "
        "over scenes"
    )
