"""Streams of metrics, and what the detectors of a run say of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cluster.harm.alert import Alert
from cluster.harm.watch import HarmWatch
from common.config import RunConfig

Line = Mapping[str, float]


def config_of(**sections: Any) -> RunConfig:
    """A run's configuration with these sections."""
    return RunConfig.model_validate({"mixture": {"online_fraction": 1}, **sections})


def alerts_of(lines: Iterable[Line], config: RunConfig | None = None) -> list[Alert]:
    """Everything that is said of these steps; a line without a step is the next one."""
    watch = HarmWatch(config or config_of())
    alerts: list[Alert] = []
    for number, line in enumerate(lines, start=1):
        step = int(line.get("step", number))
        alerts += watch.step(step, line)
    return alerts


def ramp(name: str, start: float, slope: float, count: int = 40) -> list[Line]:
    """`start`, and `slope` more with each step."""
    return [{name: start + slope * step} for step in range(count)]
