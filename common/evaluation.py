"""Records of an evaluation: what a policy was asked, what it answered, and what came of it.

They travel between the suites of `reward/` and the code of `cluster/` that asks, judges and shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from common.data.image_conditions import Condition
from common.records import Dropped, Prompt, RolloutGroup, SideLogps, Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Split: TypeAlias = Literal["validation", "test"]
"""Validation picks the checkpoint, test is only reported."""

Direction: TypeAlias = Literal["higher", "lower", ""]
"""Which values of a metric are better; "" for a metric that only describes."""

Resampled: TypeAlias = "Mapping[str, NDArray[np.float64]]"
"""Metric -> its value in every bootstrap draw, (num_samples,)."""

TaskPrompts: TypeAlias = Mapping[str, Sequence[Prompt]]
"""The prompts of a suite by task, such as "captions" and "questions"."""

ConditionLogps: TypeAlias = Mapping[Condition, Mapping[str, SideLogps]]
"""Image condition -> pair id -> log-probs."""


@dataclass(frozen=True, slots=True)
class SuiteAnswers:
    """What one policy answered to one suite.

    Attributes:
        tasks: greedy answers by task, one completion per group.
        logps: the policy's log-probs of the suite's pairs, by pair id.
        dropped: prompts without an answer, and pairs without log-probs.
    """

    tasks: dict[str, tuple[RolloutGroup, ...]] = field(default_factory=dict)
    logps: dict[str, SideLogps] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """Everything one policy answered: by suite, and its log-probs for the grounding gate."""

    suites: dict[str, SuiteAnswers] = field(default_factory=dict)
    grounding: dict[Condition, dict[str, SideLogps]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a policy's answers are held against.

    Attributes:
        start: the start policy's answers to the same prompts and pairs.
        verdicts: prompt id -> the judge's scores of (the policy's answer, the start policy's), for the suite's
            `compared_tasks`. A prompt that the judge failed on is absent.
    """

    start: SuiteAnswers
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """What is known of a metric before anything is asked.

    Attributes:
        label: its name in the tables; "" leaves it out of them.
        better: only a metric with a direction can pick a checkpoint or tell harm.
        meaning: a sentence for people.
        digits: shown after the decimal point.
        tasks: the tasks whose answers it is measured on; () for all.
        against_start: it needs the start policy's answers, as a win rate does.
    """

    label: str
    better: Direction
    meaning: str
    digits: int = 3
    tasks: tuple[str, ...] = ()
    against_start: bool = False


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured number.

    Attributes:
        value: the number.
        interval: its 95 % interval, where there is one.
        label: its name in the tables; without one it stands in the JSON only.
        better: which direction is an improvement; "" for neither.
        meaning: a sentence for people.
        digits: shown after the decimal point.
    """

    value: float
    interval: tuple[float, float] | None = None
    label: str = ""
    better: Direction = ""
    meaning: str = ""
    digits: int = 3


@dataclass(frozen=True, slots=True)
class Score:
    """The number by which a checkpoint is picked."""

    value: float
    higher_is_better: bool = True

    def beats(self, best: float | None) -> bool:
        """Whether it is better than the best one so far. An equal one is not: the earlier checkpoint stays."""
        if best is None:
            return True
        return self.value > best if self.higher_is_better else self.value < best


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a suite measured.

    Attributes:
        metrics: by name. A metric that could not be measured is absent, never 0.
        counts: how many answers are behind the metrics.
        dropped: how many answers could not be counted, by reason.
        summary: all this in a sentence for people.
        resampled: the metrics of the bootstrap draws, where there are intervals. Two policies that answered the same
            prompts meet the same draws, so that their difference has an interval as well.
        missing: why a metric is absent, by metric.
    """

    metrics: Mapping[str, Metric]
    counts: Mapping[str, int]
    dropped: Mapping[str, int]
    summary: str
    # Arrays have no truth value for `==` to use.
    resampled: Resampled = field(default_factory=dict, compare=False)
    missing: Mapping[str, str] = field(default_factory=dict)


Mark: TypeAlias = tuple[int, int, str]
"""(begin, end, kind) of a stretch of text; the kinds are "made-up" and "wrong"."""


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """One answer as the samples page shows it.

    `notes` are listed below the text after `note_label`, for example the objects that a caption missed. Answers with
    the largest `weight` come first.
    """

    text: str
    marks: Sequence[Mark] = ()
    note_label: str = ""
    notes: tuple[str, ...] = ()
    weight: int = 0


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """What a kind of mark means; `kind` "note" stands for the notes. `sample` is a word shown in that look."""

    kind: str
    sample: str
    meaning: str


def count_reasons(dropped: Sequence[Dropped]) -> dict[str, int]:
    """How many were dropped, by reason."""
    reasons = [drop.reason for drop in dropped]
    return dict(Counter(reasons))
