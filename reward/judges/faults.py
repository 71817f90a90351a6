"""Why a question of a judge has no answer, and why a group has no verdict because of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from common.gathering import gather_whole
from common.protocols import JudgeError, Reply
from common.records import Dropped, RolloutGroup, Verdict

SHOWN = 80
"""Characters of a reply that a note or a reason shows."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One question without an answer.

    Attributes:
        reason: `unreadable` for a reply that says too little, `judge_failed` for a question that could not be asked.
        detail: the reply's beginning, or what the eye said.
    """

    reason: str
    detail: str

    def drop(
        self,
        group_id: str,
        judge: str,
        num_read: int,
        num_asked: int,
    ) -> Dropped:
        """The reason of a whole group, of which this is an example."""
        detail = f"judge {judge}: could read {num_read} of {num_asked} replies, but not {self.detail}"
        if self.reason == "judge_failed":
            detail = f"judge {judge}: {self.detail}"
        return Dropped(group_id, self.reason, detail)


def fault_of(reply: Reply | Dropped) -> Fault:
    """The fault of a reply that could not be read."""
    if isinstance(reply, Dropped):
        return Fault("judge_failed", f"{reply.reason}: {reply.detail}")
    if reply.logprobs:
        return Fault("unreadable", f"log-probs {reply.logprobs}")
    return Fault("unreadable", repr(beginning(reply.text)))


def beginning(text: str) -> str:
    """The beginning of a text, on one line."""
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}…"


async def judge_each(
    judge_group: Callable[[RolloutGroup], Awaitable[Verdict | Dropped]],
    groups: Sequence[RolloutGroup],
) -> list[Verdict | Dropped | JudgeError]:
    """Judge groups side by side. One that fails for now has its JudgeError in place of a verdict."""

    async def judge(group: RolloutGroup) -> Verdict | Dropped | JudgeError:
        try:
            return await judge_group(group)
        except JudgeError as error:
            return error

    return await gather_whole(map(judge, groups))
