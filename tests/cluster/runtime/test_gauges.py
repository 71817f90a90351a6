"""How metrics are named for Prometheus; that it reads them is seen in `test_ray_jobs.py`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cluster.runtime.gauges import Gauges


class FakeGauge:
    """Remembers what it was set to, as Ray's does."""

    made: list[FakeGauge]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name = name
        self.tag_keys = tag_keys
        self.values: list[tuple[float, dict[str, str]]] = []
        self.made.append(self)

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tag_keys)
        self.values.append((value, tags))


def test_reasons_and_kinds_are_tags() -> None:
    FakeGauge.made = []
    metrics = SimpleNamespace(Gauge=FakeGauge)
    ray: Any = SimpleNamespace(util=SimpleNamespace(metrics=metrics))
    gauges = Gauges(ray, "train /runs/a")
    gauges.set({"step": 1, "time/wait_s": 0.5, "pairs/dropped/tie": 3.0})
    gauges.set({"step": 2, "pairs/dropped/empty": 1.0, "restarts/rollout": 1.0})
    values = {gauge.name: gauge.values for gauge in FakeGauge.made}
    run = {"run": "train /runs/a"}
    assert values == {
        "sightline_step": [(1, run), (2, run)],
        "sightline_time_wait_s": [(0.5, run)],
        "sightline_pairs_dropped": [
            (3.0, {**run, "reason": "tie"}),
            (1.0, {**run, "reason": "empty"}),
        ],
        "sightline_restarts": [(1.0, {**run, "kind": "rollout"})],
    }
