"""What most suites have in common: no judge, no pairs, nothing to mark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.data.images import ImageStore
from common.evaluation import (
    LegendEntry,
    ShownAnswer,
    Split,
    SuiteAnswers,
    TaskPrompts,
)
from common.records import Dropped, PreferencePair, Prompt


class BaseSuite:
    """Defaults of `common.protocols.Suite`; a suite writes over what it has more of."""

    compared_tasks: Sequence[str] = ()
    shown_tasks: Sequence[str] = ()
    unit = "pictures"
    legend: Sequence[LegendEntry] = ()

    def pairs(
        self,
        split: Split,
        store: ImageStore,
        dropped: list[Dropped],
    ) -> Sequence[PreferencePair]:
        """None: only answers are measured."""
        return ()

    def show(self, prompt: Prompt, text: str) -> ShownAnswer:
        """The answer as it is."""
        return ShownAnswer(text)

    def answer_files(self, answers: SuiteAnswers, policy: str) -> Mapping[str, str]:
        """None: nobody else measures these answers."""
        return {}

    def heldout_pairs(self, prompts: TaskPrompts, limit: int) -> list[PreferencePair]:
        """None: nobody says which answers are right."""
        return []
