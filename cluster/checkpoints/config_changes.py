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
    "loop.publish_interval",
    "loop.warnings.*",
    "tracking.*",
    # How much is measured: what was measured in another size is measured again.
    "evaluation.samples_shown",
    "evaluation.bootstrap_samples",
    "evaluation.grounding_pairs",
    "evaluation.suites.*.validation_scenes",
    "evaluation.suites.*.test_scenes",
    "evaluation.suites.*.questions_per_scene",
    "evaluation.suites.*.limit",
    "learner.grounding_pairs",
    # How many share the work, and by which calls.
    "*.num_engines",
    "weights.*",
    # What a transport carries: another one sets it.
    "model.tuning.push",
    "rollout.num_workers",
    "rollout.prompts_per_call",
    "rollout.engine.*",
    "reward.num_workers",
    "reward.concurrency",
    "reward.max_retries",
    "reward.cache",
    "learner.engine",
    "learner.num_ranks",
    "learner.zero_stage",
    "learner.offload",
    "learner.input_workers",
    "learner.micro_batch",
    "learner.gradient_checkpointing",
    "learner.fast.*",
)
"""Patterns of the keys that a resumed run may change: they decide neither what is trained on nor how.

Ranks share batches out in another way when their number changes, so that sums differ in their last bits.
"""

MEASURING = "evaluation.*"
SHOWN_ONLY = "evaluation.samples_shown"
OF_TEST_ONLY = (
    SHOWN_ONLY,
    "evaluation.bootstrap_samples",
    "evaluation.grounding_pairs",
    "evaluation.suites.*.test_scenes",
)
"""What no checkpoint is picked by."""

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

    @property
    def is_of_measuring(self) -> bool:
        """Whether what was measured before is not what would be measured now."""
        return fnmatchcase(self.key, MEASURING) and self.key != SHOWN_ONLY

    @property
    def is_of_validation(self) -> bool:
        """Whether the score of a checkpoint is no longer what it was."""
        if not self.is_of_measuring:
            return False
        return not any(fnmatchcase(self.key, pattern) for pattern in OF_TEST_ONLY)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Every key whose values differ."""
    differing = []
    for change in _changes(before, now, ""):
        if change.key != COMPARED_RESOLVED:
            differing.append(change)
    return differing


def _changes(before: Any, now: Any, key: str) -> Iterator[Change]:
    theirs, ours = _named_parts(before), _named_parts(now)
    if theirs is None or ours is None:
        if before != now:
            yield Change(key, before, now)
        return
    for name in sorted({*theirs, *ours}):
        path = f"{key}.{name}" if key else name
        # A section that one of them lacks, as an older version's does, differs key by key.
        yield from _changes(
            theirs.get(name, _empty_like(ours.get(name))),
            ours.get(name, _empty_like(theirs.get(name))),
            path,
        )


def _empty_like(value: Any) -> Mapping[str, Any] | None:
    return None if _named_parts(value) is None else {}


def _named_parts(value: Any) -> Mapping[str, Any] | None:
    """The parts of a section, or of a list of sections by their numbers; None for a plain value."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return {str(index): part for index, part in enumerate(value)}
    return None
