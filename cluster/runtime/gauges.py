"""Metrics of a run as gauges of Ray, which every node offers to Prometheus. Ray itself is given: one file imports it.

`loss` becomes `ray_sightline_loss`; all have the run directory as their tag `run`. `pairs/dropped/tie` becomes
`ray_sightline_pairs_dropped` with the tag `reason`, and `restarts/rollout` `ray_sightline_restarts` with `kind`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TAG_OF_REST = {"pairs/dropped": "reason", "restarts": "kind"}
"""Metrics that end with a name of their own -> the tag that holds it."""


class Gauges:
    """Made when they are first set."""

    def __init__(self, ray: Any, run: str) -> None:
        self._ray = ray
        self._run = run
        self._gauges: dict[str, Any] = {}

    def set(self, values: Mapping[str, float]) -> None:
        """Show these values from now on."""
        for name, value in values.items():
            prefix, _, rest = name.rpartition("/")
            tag = TAG_OF_REST.get(prefix)
            if tag is None:
                self._gauge(name, ()).set(value, tags={"run": self._run})
            else:
                tags = {"run": self._run, tag: rest}
                self._gauge(prefix, (tag,)).set(value, tags=tags)

    def _gauge(self, name: str, tags: tuple[str, ...]) -> Any:
        plain = re.sub(r"\W", "_", name)
        if plain not in self._gauges:
            self._gauges[plain] = self._ray.util.metrics.Gauge(
                f"sightline_{plain}",
                description=f"{name} of the newest learner step",
                tag_keys=("run", *tags),
            )
        return self._gauges[plain]
