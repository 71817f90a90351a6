"""Any held-out prompts: the judge's score, the win rate against the start policy, length and truncation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common import config
from common.data.datasets import read_prompts
from common.data.images import ImageStore
from common.evaluation import (
    Measurement,
    Metric,
    Split,
    SuiteAnswers,
    TaskPrompts,
    Wins,
)
from common.records import Dropped
from reward.suites.base import BaseSuite

ANSWERS = "answers"


class PromptsSuite(BaseSuite):
    """A `common.protocols.Suite` of prompts that the user holds out."""

    selecting_tasks = (ANSWERS,)
    compared_tasks = (ANSWERS,)
    shown_tasks = (ANSWERS,)
    unit = "prompts"

    def __init__(self, settings: config.PromptsSuite, run: config.RunConfig) -> None:
        self.name = settings.name
        self._paths = {"validation": settings.validation, "test": settings.test}
        self._limit = settings.limit

    def prompts(self, split: Split, store: ImageStore) -> TaskPrompts:
        """The prompts of the split's file; rows that are none are left out."""
        path = self._paths[split]
        if path is None:
            return {ANSWERS: []}
        dropped: list[Dropped] = []
        return {ANSWERS: read_prompts(Path(path), dropped, self._limit)}

    def measure(
        self, answers: SuiteAnswers, wins: Wins | None, num_samples: int
    ) -> Measurement:
        """See `common.protocols.Suite`."""
        return Measurement({}, {}, {}, "")

    def selection(self, metrics: Mapping[str, Metric]) -> float | None:
        """See `common.protocols.Suite`."""
        return None
