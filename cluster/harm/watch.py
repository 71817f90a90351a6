"""A run that says when it does harm: groups and metrics in, warnings out.

    groups ──▶ GroupTally ──metrics──┐
                                     ▼
    learner's metrics ───────▶ metrics.jsonl ──▶ detectors ──▶ Alert ──▶ log, journal, report

A detector reads nothing but the lines of metrics.jsonl. So a resumed run goes on where it was: it shows its detectors
the lines that are there.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.harm.alert import Alert, Detector, Metrics
from cluster.harm.detectors import detectors_of
from cluster.harm.tally import GroupTally
from cluster.run.outcome import GroupOutcome
from common.config import RunConfig


class HarmWatch:
    """The detectors of one run; none with `loop.warnings.enabled = false`, which leaves the metrics."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._tally = _tally(config)
        self._detectors = _detectors(config)

    def group(self, outcome: GroupOutcome) -> None:
        """A group has settled."""
        self._tally.add(outcome)

    def take(self) -> dict[str, float]:
        """The metrics of the groups that settled since the last step."""
        return self._tally.take()

    def replay(self, lines: Iterable[Metrics]) -> None:
        """Look at the steps before a resume, whose warnings were said then; what was seen before is forgotten.

        A learner that is lost goes on within one run: groups that settled since are sampled again.
        """
        self._tally = _tally(self._config)
        self._detectors = _detectors(self._config)
        for line in lines:
            self.step(int(line["step"]), line)

    def step(self, step: int, metrics: Metrics) -> list[Alert]:
        """What there is to say after a step, by all its metrics."""
        alerts: list[Alert] = []
        for detector in self._detectors:
            alert = detector.step(step, metrics)
            if alert is not None:
                alerts.append(alert)
        return alerts


def _tally(config: RunConfig) -> GroupTally:
    return GroupTally(by_prompt=config.rollout.draw == "by_worth")


def _detectors(config: RunConfig) -> list[Detector]:
    return detectors_of(config) if config.loop.warnings.enabled else []
