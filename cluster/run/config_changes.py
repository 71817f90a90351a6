"""What of a run's config may change with a resume, and what may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

MAY_CHANGE = (
    # How far a run gets, how long it waits and where it runs.
    "*.budget",
    "*.budget.*",
    "*_s",
    "cluster.*",
    "*.num_cpus",
    "*.num_gpus",
    "checkpoint.*",
    "loop.probe_*",
    "evaluation.samples_shown",
    # How many share the work, and by which calls.
    "rollout.num_workers",
    "rollout.prompts_per_call",
    "rollout.engine.*",
    "reward.num_workers",
    "reward.concurrency",
    "reward.max_retries",
    "reward.cache",
    "learner.micro_batch",
    "learner.gradient_checkpointing",
    "learner.fast.*",
)
"""Patterns of the keys that a resumed run may change: they decide neither what is trained on nor how."""

COMPARED_RESOLVED = "run.dir"
"""Whoever owns the directory has found it already."""


@dataclass(frozen=True, slots=True)
class Change:
    """A key whose value is another one than when the run was started; None where a config has no such key."""

    key: str
    before: Any
    now: Any

    @property
    def is_allowed(self) -> bool:
        """Whether a resumed run may have it."""
        return any(fnmatchcase(self.key, pattern) for pattern in MAY_CHANGE)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Every key whose values differ."""
    differing = []
    for change in _changes(before, now, ""):
        if change.key != COMPARED_RESOLVED:
            differing.append(change)
    return differing


def _changes(before: Any, now: Any, key: str) -> Iterator[Change]:
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        if before != now:
            yield Change(key, before, now)
        return
    for name in sorted({*before, *now}):
        path = f"{key}.{name}" if key else name
        yield from _changes(before.get(name), now.get(name), path)
