"""Lets the judge compare a policy's answers with the start policy's.

A judge that fails costs verdicts, never the scorecard: what it could not compare is counted under `judge_failed`, and
metrics without a verdict are absent.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Protocol, TypeAlias

from cluster.evaluation.chunks import in_chunks
from cluster.evaluation.kept import VERDICTS, KeptAnswers
from common.errors import UserError, plain_message
from common.evaluation import SuiteAnswers
from common.protocols import Suite
from common.records import Completion, Dropped, RolloutGroup, Verdict
from common.row_faults import drop_report

log = logging.getLogger("sightline")

MAX_REASON = 500
"""Characters of an error that a scorecard keeps."""

JUDGE_FAILED = "judge_failed"
Judged: TypeAlias = Verdict | Dropped


class Comparer(Protocol):
    """Judges groups of two answers; a `RewardClient`."""

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Judged]: ...


async def compare(
    judges: Sequence[Comparer],
    suite: Suite,
    answers: SuiteAnswers,
    start: SuiteAnswers,
    kept: KeptAnswers | None = None,
) -> tuple[dict[str, Verdict], list[Dropped]]:
    """Prompt id -> scores of (the policy's answer, the start policy's), and the comparisons that failed."""
    groups, dropped = _comparisons(suite, answers, start)
    calls = [_forgiving(judge) for judge in judges]
    section = None
    if kept is not None:
        section = kept.section(f"verdicts/{suite.name}", VERDICTS, _judge_answered)
    judgements = await in_chunks(calls, groups, kept=section)
    verdicts: dict[str, Verdict] = {}
    for group, judged in zip(groups, judgements, strict=True):
        if isinstance(judged, Dropped):
            dropped.append(judged)
        else:
            verdicts[group.prompt.id] = _policy_first(judged, group.prompt.id)
    if dropped:
        log.warning(
            "of %d comparisons with the start policy %d have no verdict: dropped %s",
            len(dropped) + len(verdicts),
            len(dropped),
            drop_report(dropped),
        )
    return verdicts, dropped


def _comparisons(
    suite: Suite,
    answers: SuiteAnswers,
    start: SuiteAnswers,
) -> tuple[list[RolloutGroup], list[Dropped]]:
    """Groups of the policy's answer and the start policy's, and the answers that have none beside them."""
    groups: list[RolloutGroup] = []
    dropped: list[Dropped] = []
    for task in suite.compared_tasks:
        start_answers: dict[str, Completion] = {}
        for group in start.tasks.get(task, ()):
            start_answers[group.prompt.id] = group.completions[0]
        for group in answers.tasks.get(task, ()):
            start_answer = start_answers.get(group.prompt.id)
            if start_answer is None:
                dropped.append(Dropped(group.id, "no_baseline"))
                continue
            both = (group.completions[0], start_answer)
            if _is_swapped(group.prompt.id):
                both = both[::-1]
            groups.append(replace(group, completions=both))
    return groups, dropped


def _is_swapped(prompt_id: str) -> bool:
    """Whether the start policy's answer stands first: for about every second prompt, always the same ones.

    The judge is not told which answer is whose, and to prefer the first one wins nothing.
    """
    return sha256(prompt_id.encode()).digest()[0] % 2 == 1


def _policy_first(verdict: Verdict, prompt_id: str) -> Verdict:
    """The verdict on (the policy's answer, the start policy's), in whatever order the judge saw them."""
    if not _is_swapped(prompt_id):
        return verdict
    return Verdict(verdict.scores[::-1], verdict.notes[::-1])


def _forgiving(
    judge: Comparer,
) -> Callable[[Sequence[RolloutGroup]], Awaitable[list[Judged]]]:
    """The judge's call, which drops its groups where the judge raises or does not answer."""
    gave_up: list[str] = []

    async def call(groups: Sequence[RolloutGroup]) -> list[Judged]:
        # To wait for the same limit once per chunk could take hours.
        if not gave_up:
            try:
                return await judge.judge(groups)
            except UserError as error:
                gave_up.append(str(error))
                log.warning("the judge compares no more answers: %s", error)
            # Whatever a user's judge raises, here or in its worker.
            except Exception as error:
                reason = _one_line(error)
                log.warning("the judge failed on %d answers: %s", len(groups), reason)
                return [Dropped(group.id, JUDGE_FAILED, reason) for group in groups]
        return [Dropped(group.id, JUDGE_FAILED, gave_up[0]) for group in groups]

    return call


def _one_line(error: Exception) -> str:
    why = plain_message(error).strip() or type(error).__name__
    # One line, whatever it has: where a judge failed may stand in its last one.
    return " ".join(why.split())[:MAX_REASON]


def _judge_answered(judgements: Sequence[Judged]) -> bool:
    """Whether a chunk need not be judged again after a kill."""
    reasons = [judged.reason for judged in judgements if isinstance(judged, Dropped)]
    return JUDGE_FAILED not in reasons
