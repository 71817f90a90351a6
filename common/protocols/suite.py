"""Asks a policy and measures its answers: reward/suites/ and reward/benchmarks/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from common.records import Dropped, PreferencePair, Prompt

if TYPE_CHECKING:
    from common.data.images import ImageStore
    from common.evaluation import (
        Comparison,
        LegendEntry,
        Measurement,
        MetricInfo,
        ShownAnswer,
        Split,
        SuiteAnswers,
        TaskPrompts,
    )


class Suite(Protocol):
    """What a policy is asked, and how its answers are measured. A suite knows no engine, worker or page.

    The prompts of a suite belong to named tasks, such as "captions" and "questions". `reward.suites.base.BaseSuite`
    has defaults for what few suites need.
    """

    @property
    def name(self) -> str:
        """What the scorecard calls it."""
        ...

    @property
    def metrics(self) -> Mapping[str, MetricInfo]:
        """The metrics that `evaluation.select` may name, in the order of the tables."""
        ...

    @property
    def selecting_metric(self) -> str:
        """The one of `metrics` that picks a checkpoint unless `evaluation.select` names another; a share in 0-1.

        "" for a suite that has none.
        """
        ...

    @property
    def compared_tasks(self) -> Sequence[str]:
        """Tasks whose answers the judge compares with those of the start policy."""
        ...

    @property
    def shown_tasks(self) -> Sequence[str]:
        """Tasks whose answers the samples page shows."""
        ...

    @property
    def unit(self) -> str:
        """What the samples page calls its rows, such as "scenes"."""
        ...

    @property
    def legend(self) -> Sequence[LegendEntry]:
        """What the marks of `show` mean."""
        ...

    def prompts(
        self,
        split: Split,
        store: ImageStore,
        dropped: list[Dropped],
    ) -> TaskPrompts:
        """The prompts of a split by task, the same in every run, whatever its seed.

        Args:
            store: takes the pictures.
            dropped: collects the rows of a file that are no prompt.
        """
        ...

    def pairs(
        self,
        split: Split,
        store: ImageStore,
        dropped: list[Dropped],
    ) -> Sequence[PreferencePair]:
        """Pairs whose log-probs are measured; most suites have none. Arguments as of `prompts`."""
        ...

    def measure(
        self,
        answers: SuiteAnswers,
        comparison: Comparison | None,
        num_samples: int,
    ) -> Measurement:
        """Measure one policy's answers.

        Args:
            answers: to the prompts of one split.
            comparison: with the start policy; None when this *is* the start policy.
            num_samples: bootstrap draws of the intervals.
        """
        ...

    def show(self, prompt: Prompt, text: str) -> ShownAnswer:
        """How the samples page shows an answer to one of `shown_tasks`."""
        ...

    def answer_files(self, answers: SuiteAnswers, policy: str) -> Mapping[str, str]:
        """The files that official evaluators read, name -> content; {} when there are none. They call the policy so."""
        ...

    def heldout_pairs(self, prompts: TaskPrompts, limit: int) -> list[PreferencePair]:
        """At most `limit` pairs of a right over a wrong answer, for the grounding gate; [] when the suite has none."""
        ...
