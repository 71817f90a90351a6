"""What most suites have in common: no judge, no pairs, nothing to mark."""

from __future__ import annotations

from collections.abc import Sequence

from common.evaluation import LegendEntry, ShownAnswer, TaskPrompts
from common.records import PreferencePair, Prompt


class BaseSuite:
    """Defaults of `common.protocols.Suite`; a suite writes over what it has more of."""

    compared_tasks: Sequence[str] = ()
    shown_tasks: Sequence[str] = ()
    unit = "pictures"
    legend: Sequence[LegendEntry] = ()

    def show(self, prompt: Prompt, text: str) -> ShownAnswer:
        """The answer as it is."""
        return ShownAnswer(text)

    def heldout_pairs(self, prompts: TaskPrompts, limit: int) -> list[PreferencePair]:
        """None: nobody says which answers are right."""
        return []
