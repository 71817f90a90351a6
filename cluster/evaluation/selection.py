"""Which number picks the checkpoint: `evaluation.select`, or the mean over all suites of their own choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.evaluation.grounding import AskedSuite
from common.errors import UserError
from common.evaluation import MetricInfo, Score
from common.protocols import Suite
from common.records import Prompt
from reward.suites.scorecard import Scorecard


@dataclass(frozen=True, slots=True)
class _Choice:
    """One metric of one suite."""

    suite: Suite
    metric: str

    @property
    def name(self) -> str:
        return f"{self.suite.name}.{self.metric}"

    @property
    def info(self) -> MetricInfo:
        return self.suite.metrics[self.metric]


class Selection:
    """The metrics that pick a checkpoint, and what has to be asked for them."""

    def __init__(
        self, suites: Sequence[Suite], select: str | Sequence[str] | None
    ) -> None:
        """`select` is `SUITE.METRIC`, the name of a metric that one suite alone has, several of them, or None.

        Raises:
            UserError: no metric with a direction is called so, or several are.
        """
        names = [select] if isinstance(select, str) else select
        self._is_chosen = bool(names)
        if names:
            self._choices = [_chosen(suites, name) for name in names]
        else:
            self._choices = _own_choices(suites)

    @property
    def names(self) -> list[str]:
        """The metrics, as SUITE.METRIC."""
        return [choice.name for choice in self._choices]

    @property
    def against_start(self) -> bool:
        """Whether a metric needs the start policy's answers."""
        return any(choice.info.against_start for choice in self._choices)

    def asked(self, suites: Sequence[AskedSuite]) -> list[AskedSuite]:
        """What of the validation split the metrics are measured on; suites without any of it are left out.

        Raises:
            UserError: a metric that `evaluation.select` names has nothing to be measured on.
        """
        asked: list[AskedSuite] = []
        for whole in suites:
            choices = [
                choice
                for choice in self._choices
                if choice.suite.name == whole.suite.name
            ]
            for choice in choices:
                if self._is_chosen and not _part(whole, [choice]).num_items:
                    raise UserError(
                        f"evaluation.select: expected a metric with validation prompts, got {choice.name} without any; "
                        "give its suite some, or select another"
                    )
            part = _part(whole, choices)
            if part.num_items:
                asked.append(part)
        return asked

    def score(self, card: Scorecard) -> Score | None:
        """The number that a scorecard of the validation split comes to; None when nothing could be measured."""
        if self._is_chosen and len(self._choices) == 1:
            (choice,) = self._choices
            value = _value(card, choice)
            if value is None:
                return None
            return Score(value, choice.info.better == "higher")
        shares: list[float] = []
        for choice in self._choices:
            value = _value(card, choice)
            if value is None:
                # A mean of other metrics than the last checkpoint's says nothing.
                if self._is_chosen:
                    return None
                continue
            # Shares in 0-1, so that suites of several kinds have a mean.
            if choice.info.better == "lower":
                value = 1 - value
            shares.append(value)
        if not shares:
            return None
        return Score(sum(shares) / len(shares))


def _value(card: Scorecard, choice: _Choice) -> float | None:
    suite_card = card.suites.get(choice.suite.name)
    if suite_card is None:
        return None
    return suite_card.value(choice.metric)


def _part(whole: AskedSuite, choices: Sequence[_Choice]) -> AskedSuite:
    """The tasks that these metrics are measured on; all of them, and the pairs, for one that names none."""
    tasks: dict[str, Sequence[Prompt]] = {}
    for choice in choices:
        if not choice.info.tasks:
            return whole
        for name in choice.info.tasks:
            tasks[name] = whole.prompts.get(name, ())
    return AskedSuite(whole.suite, tasks)


def _own_choices(suites: Sequence[Suite]) -> list[_Choice]:
    """The metrics that suites pick a checkpoint by; some only report."""
    choices: list[_Choice] = []
    for suite in suites:
        if suite.selecting_metric:
            choices.append(_Choice(suite, suite.selecting_metric))
    return choices


def _chosen(suites: Sequence[Suite], select: str) -> _Choice:
    choices: list[_Choice] = []
    for suite in suites:
        for metric, info in suite.metrics.items():
            # Nobody could say which checkpoint is better by the others.
            if info.better:
                choices.append(_Choice(suite, metric))
    matches = [choice for choice in choices if select in (choice.name, choice.metric)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = " or ".join(choice.name for choice in matches)
        raise UserError(
            f"evaluation.select: expected the metric of one suite, got {select} of several; say {names}"
        )
    names = ", ".join(choice.name for choice in choices) or "no suite"
    raise UserError(
        f"evaluation.select: expected a metric of evaluation.suites ({names}), got {select!r}; name one of them"
    )
