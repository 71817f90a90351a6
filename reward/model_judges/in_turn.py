"""Judges that look at one group after another, and at each alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from common.errors import Refused
from common.protocols import JudgeError
from common.records import Dropped, RolloutGroup, Verdict


def in_turn(
    name: str,
    groups: Sequence[RolloutGroup],
    judge_group: Callable[[RolloutGroup], Verdict],
) -> list[Verdict | Dropped]:
    """One verdict per group, in order.

    Args:
        name: of the judge.
        judge_group: raises JudgeError or Refused for a group that cannot be judged; asking again would not help, so it
            is dropped as `judge_failed`.
    """
    verdicts: list[Verdict | Dropped] = []
    for group in groups:
        try:
            verdicts.append(judge_group(group))
        except (JudgeError, Refused) as error:
            detail = f"judge {name}: {error}"
            verdicts.append(Dropped(group.id, "judge_failed", detail))
    return verdicts
