"""What a run remembers of its drops beside their counts: an example of each reason, and that nothing is usable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.run.outcome import NO_VERDICT, GroupOutcome
from common.errors import UserError
from common.records import Dropped, Prompt
from common.row_faults import drop_report, first_cases, such_as

BY_CHANCE = frozenset({"cut_off", "empty", "identical", "media_token"})
"""Reasons of groups that were sampled and may come out otherwise when they are sampled again."""


class DropNotes:
    """The first case of every reason since the start or the last resume."""

    def __init__(self) -> None:
        self._examples: dict[str, Dropped] = {}

    def add(self, dropped: Dropped) -> None:
        """Keep the first case of a reason."""
        self._examples.setdefault(dropped.reason, dropped)

    @property
    def examples(self) -> dict[str, str]:
        """Reason -> its first case as a line."""
        return first_cases(self._examples.values())

    def told(self, counts: Mapping[str, int]) -> str:
        """Counts by reason with an example of each, for a message."""
        return f"{dict(counts)}{such_as(self._examples.values())}"


class UsablePrompts:
    """Notices that no prompt can be used: every one was refused before anything was sampled.

    Without it such a run would go round the prompts until `loop.stall_limit_s`.

    Args:
        prompts: of the run.
        any_usable: whether groups became pairs before a resume.
    """

    def __init__(self, prompts: Sequence[Prompt], any_usable: bool) -> None:
        self._num_prompts = len(prompts)
        self._any_usable = any_usable
        self._refused: dict[str, Dropped] = {}

    def note(self, outcome: GroupOutcome) -> None:
        """Take in what became of a group (UserError when now every prompt was refused)."""
        if self._any_usable:
            return
        dropped = outcome.dropped
        was_sampled = outcome.rollout is not None
        if dropped is None or was_sampled or dropped.reason in BY_CHANCE:
            self._any_usable = True
            self._refused.clear()
            return
        # A group id is EPOCH:PROMPT_ID or ROUND:PROMPT_ID.
        prompt_id = outcome.group_id.partition(":")[2]
        self._refused[prompt_id] = dropped
        if len(self._refused) < self._num_prompts:
            return
        raise UserError(
            f"data.prompts: expected prompts that can be sampled, got {self._num_prompts} of which every one is "
            f"refused; dropped {drop_report(self._refused.values())}; correct the rows or the settings"
        )


class WorkingJudge:
    """Notices a judge that never had a verdict, such as one with a bug that every group meets.

    Args:
        num_groups: so many without any verdict are enough.
        works: whether it had verdicts before a resume.
    """

    def __init__(self, num_groups: int, works: bool) -> None:
        self._num_groups = num_groups
        self._works = works
        self._num_failed = 0

    def note(self, outcome: GroupOutcome) -> None:
        """Take in what became of a group (UserError when there have only been groups without a verdict)."""
        if self._works or outcome.rollout is None:
            return
        dropped = outcome.dropped
        if dropped is None or dropped.reason not in NO_VERDICT:
            self._works = True
            return
        self._num_failed += 1
        if self._num_failed >= self._num_groups:
            raise UserError(
                f"reward.judge: expected verdicts, got none for the first {self._num_failed} groups"
                f"{such_as([dropped])}; correct the judge, or the columns that it reads"
            )
