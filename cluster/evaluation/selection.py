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

    def __init__(self, suites: Sequence[Suite], select: str | None) -> None:
        """`select` is `SUITE.METRIC`, the name of a metric that one suite alone has, or None.

        Raises:
            UserError: no metric with a direction is called so, or several are.
        """
        self._is_chosen = select is not None
        if select is None:
            self._choices = _own_choices(suites)
        else:
            self._choices = [_chosen(suites, select)]

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
            UserError: the metric that `evaluation.select` names has nothing to be measured on.
        """
        of_suite = {choice.suite.name: choice for choice in self._choices}
        asked: list[AskedSuite] = []
        for whole in suites:
            choice = of_suite.get(whole.suite.name)
            if choice is None:
                continue
            part = _part(whole, choice.info.tasks)
            if part.num_items:
                asked.append(part)
        if self._is_chosen and not asked:
            raise UserError(
                f"evaluation.select: expected a metric with validation prompts, got {self.names[0]} without any; "
                "give its suite some, or select another"
            )
        return asked

    def score(self, card: Scorecard) -> Score | None:
        """The number that a scorecard of the validation split comes to; None when nothing could be measured."""
        if self._is_chosen:
            (choice,) = self._choices
            value = _value(card, choice)
            if value is None:
                return None
            return Score(value, choice.info.better == "higher")
        shares: list[float] = []
        for choice in self._choices:
            value = _value(card, choice)
            if value is None:
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


def _part(whole: AskedSuite, names: Sequence[str]) -> AskedSuite:
    """The tasks of these names, or all; pairs belong to all."""
    if not names:
        return whole
    tasks: dict[str, Sequence[Prompt]] = {}
    for name in names:
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
