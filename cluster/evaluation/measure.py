"""The one way to measure a policy, shared by runs and `cluster.evaluate`. Knows neither Ray nor vLLM.

suites' tasks ──▶ RolloutClient.generate (greedy) ──answers──▶ RewardClient.judge (against the start policy)
                                                                    │ wins
Scorecard ◀── grounding gate (RolloutClient.score) ◀── Suite.measure ◀┘
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias

from pydantic import TypeAdapter

from cluster.evaluation.chunks import OnProgress, ignore_progress, in_chunks
from cluster.evaluation.grounding import Gate, grounding_gate, pass_gate
from cluster.progress import ProgressReport
from cluster.runtime.clients import RolloutClient
from common.config import RunConfig
from common.data.images import ImageStore
from common.errors import UserError, plain_message
from common.evaluation import (
    Answers,
    Split,
    SuiteAnswers,
    TaskPrompts,
    Wins,
    count_reasons,
)
from common.paths import replace_file
from common.protocols import GenerationRequest
from common.records import Completion, Dropped, Prompt, RolloutGroup, Verdict
from common.row_faults import drop_report
from reward.suites.factory import make_suites
from reward.suites.scorecard import Scorecard, SuiteCard
from reward.suites.wins import win_of

log = logging.getLogger("sightline")

Judge: TypeAlias = Callable[
    [Sequence[RolloutGroup]], Awaitable[list[Verdict | Dropped]]
]

_ANSWERS = TypeAdapter(Answers)


class Comparer(Protocol):
    """Judges groups of two answers; a `RewardClient`."""

    async def judge(
        self, groups: Sequence[RolloutGroup]
    ) -> list[Verdict | Dropped]: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """A policy's scorecard and the answers behind it, which serve as the baseline of the next policy."""

    card: Scorecard
    answers: Answers


class Evaluator:
    """Asks the suites of a config and measures what a policy answers."""

    def __init__(self, config: RunConfig, store: ImageStore) -> None:
        """`store` takes the pictures that suites and the grounding gate make."""
        self.suites = make_suites(config)
        self._settings = config.evaluation
        self._max_tokens = config.rollout.max_tokens
        self._store = store
        self._prompts: dict[Split, dict[str, TaskPrompts]] = {}

    def prompts(self, split: Split) -> dict[str, TaskPrompts]:
        """The prompts of a split by suite and task."""
        if split not in self._prompts:
            # Kept: rendering or reading the pictures of a split takes seconds.
            by_suite: dict[str, TaskPrompts] = {}
            for suite in self.suites:
                by_suite[suite.name] = suite.prompts(split, self._store)
            self._prompts[split] = by_suite
        return self._prompts[split]

    def num_prompts(self, split: Split) -> int:
        """How many prompts a split has in all suites."""
        return len(_all_prompts(self.prompts(split)))

    def validation_prompts(self) -> list[Prompt]:
        """The prompts whose answers pick a checkpoint."""
        return _all_prompts(self._selecting())

    def gate(self, split: Split) -> Gate:
        """The grounding gate's pairs (UserError when `evaluation.pairs` is no pair set)."""
        prompts = self.prompts(split)
        suites = [(suite, prompts[suite.name]) for suite in self.suites]
        return grounding_gate(self._settings, suites, self._store)

    async def measure(
        self,
        split: Split,
        rollout: RolloutClient,
        reward: Comparer | None,
        baseline: Answers | None,
        title: str,
    ) -> Measured:
        """Ask everything, compare with the start policy, measure, and pass the grounding gate.

        Args:
            rollout: a worker with the weights that are measured.
            reward: compares with the baseline; not needed without one.
            baseline: the start policy's answers to the same tasks; None says that this is the start policy.
            title: of the progress bar.

        Returns:
            The scorecard and the answers. What could not be generated or judged is counted in the scorecard.

        Raises:
            UserError: a worker does not answer within its limit, or the policy can be asked none of the prompts, or
                where there are none, none of the pairs.
        """
        # A pair set that cannot be read is refused before anything is asked.
        gate = self.gate(split)
        num_items = self.num_prompts(split) + gate.num_answers
        with ProgressReport(title, num_items) as bar:

            def count_up(num_done: int) -> None:
                bar.advance(count=num_done)

            answers = await self._ask(rollout, self.prompts(split), count_up)
            if baseline is None:
                start_logps = None
                card = self._card(answers, wins=None, failures={})
            else:
                assert reward is not None, "a baseline is there to be compared with"
                start_logps = baseline.grounding
                card = await self.compare(reward, answers, baseline)
            grounding, logps = await pass_gate(
                gate,
                rollout.score,
                start_logps,
                self._settings,
                count_up,
            )
        is_only_measure = gate.missing is None and not self.num_prompts(split)
        if is_only_measure and not any(logps.values()):
            raise UserError(
                f"evaluation.pairs: expected pairs that the policy can score, got none; dropped {grounding.dropped}; "
                "correct the pairs or the policy's settings"
            )
        card = card.model_copy(update={"grounding": grounding})
        answers = replace(answers, grounding=logps)
        return Measured(card, answers)

    async def compare(
        self,
        reward: Comparer,
        answers: Answers,
        baseline: Answers,
    ) -> Scorecard:
        """The scorecard of answers that are there already, without the grounding gate; arguments as of `measure`."""
        wins: dict[str, Wins] = {}
        failures: dict[str, list[Dropped]] = {}
        for suite in self.suites:
            comparison = await _compare(
                reward,
                suite.compared_tasks,
                answers.suites[suite.name],
                baseline.suites[suite.name],
            )
            wins[suite.name], failures[suite.name] = comparison
        return self._card(answers, wins, failures)

    async def validate(self, rollout: RolloutClient) -> Scorecard:
        """Measure on the validation split what picks a checkpoint. Nothing is compared, so there is no win rate."""
        answers = await self._ask(rollout, self._selecting(), ignore_progress)
        return self._card(answers, wins={}, failures={})

    def selection(self, card: Scorecard) -> float | None:
        """The mean over suites of the number that picks a checkpoint; None when no suite could measure its own."""
        scores: list[float] = []
        for suite in self.suites:
            metrics = card.suites[suite.name].metrics
            score = suite.selection(metrics)
            if score is not None:
                scores.append(score)
        if not scores:
            return None
        return sum(scores) / len(scores)

    def _selecting(self) -> dict[str, TaskPrompts]:
        """The validation prompts of `selecting_tasks`."""
        selecting: dict[str, TaskPrompts] = {}
        for suite in self.suites:
            prompts = self.prompts("validation")[suite.name]
            tasks: dict[str, Sequence[Prompt]] = {}
            for task in suite.selecting_tasks:
                tasks[task] = prompts[task]
            selecting[suite.name] = tasks
        return selecting

    async def _ask(
        self,
        rollout: RolloutClient,
        prompts: Mapping[str, TaskPrompts],
        on_progress: OnProgress,
    ) -> Answers:
        """Greedy answers to all prompts, task after task.

        Raises:
            UserError: the policy can be asked none of them.
        """
        by_suite: dict[str, SuiteAnswers] = {}
        for suite, tasks in prompts.items():
            groups: dict[str, tuple[RolloutGroup, ...]] = {}
            dropped: list[Dropped] = []
            for task, task_prompts in tasks.items():
                requests = [self._request(prompt) for prompt in task_prompts]
                results = await in_chunks(rollout.generate, requests, on_progress)
                answered, lost = _split_dropped(results)
                groups[task] = tuple(answered)
                dropped += lost
            by_suite[suite] = SuiteAnswers(groups, tuple(dropped))
        _check_answers(by_suite)
        return Answers(by_suite)

    def _request(self, prompt: Prompt) -> GenerationRequest:
        # Greedy: the same weights give the same answers.
        return GenerationRequest(
            id=f"evaluation/{prompt.id}",
            prompt=prompt,
            num_completions=1,
            temperature=0.0,
            max_tokens=self._max_tokens,
        )

    def _card(
        self,
        answers: Answers,
        wins: dict[str, Wins] | None,
        failures: dict[str, list[Dropped]],
    ) -> Scorecard:
        """`wins` by suite; None says that this is the start policy. `failures` are the judge's."""
        cards: dict[str, SuiteCard] = {}
        for suite in self.suites:
            suite_answers = answers.suites[suite.name]
            suite_wins: Wins | None = None
            if wins is not None:
                suite_wins = wins.get(suite.name, {})
            measurement = suite.measure(
                suite_answers,
                suite_wins,
                self._settings.bootstrap_samples,
            )
            # Lost on the way here, and what the suite itself could not count.
            lost = [*suite_answers.dropped, *failures.get(suite.name, ())]
            dropped = Counter(count_reasons(lost))
            dropped.update(measurement.dropped)
            cards[suite.name] = SuiteCard(
                metrics=dict(measurement.metrics),
                counts=dict(measurement.counts),
                dropped=dict(dropped),
                summary=measurement.summary,
            )
        return Scorecard(suites=cards)


def _all_prompts(by_suite: Mapping[str, TaskPrompts]) -> list[Prompt]:
    """The prompts of all suites and tasks, in order."""
    all_prompts: list[Prompt] = []
    for tasks in by_suite.values():
        for prompts in tasks.values():
            all_prompts += prompts
    return all_prompts


def _check_answers(by_suite: Mapping[str, SuiteAnswers]) -> None:
    """Refuse (UserError) answers of which every one was dropped: a scorecard without a number would say nothing."""
    dropped: list[Dropped] = []
    for answers in by_suite.values():
        if any(answers.tasks.values()):
            return
        dropped += answers.dropped
    if dropped:
        raise UserError(
            f"evaluation.suites: expected answers, got none to {len(dropped)} prompts; dropped {drop_report(dropped)}; "
            "correct the prompts or the policy's settings"
        )


def _split_dropped(
    results: Sequence[RolloutGroup | Dropped],
) -> tuple[list[RolloutGroup], list[Dropped]]:
    """Answered groups and the reasons of the others."""
    groups: list[RolloutGroup] = []
    dropped: list[Dropped] = []
    for result in results:
        if isinstance(result, Dropped):
            dropped.append(result)
        else:
            groups.append(result)
    return groups, dropped


async def _compare(
    reward: Comparer,
    tasks: Sequence[str],
    answers: SuiteAnswers,
    baseline: SuiteAnswers,
) -> tuple[dict[str, float], list[Dropped]]:
    """Prompt id -> win of an answer over the start policy's, and the comparisons that failed."""
    comparisons: list[RolloutGroup] = []
    dropped: list[Dropped] = []
    for task in tasks:
        start_answers: dict[str, Completion] = {}
        for group in baseline.tasks.get(task, ()):
            start_answers[group.prompt.id] = group.completions[0]
        for group in answers.tasks[task]:
            start_answer = start_answers.get(group.prompt.id)
            if start_answer is None:
                dropped.append(Dropped(group.id, "no_baseline"))
                continue
            # The judge is not told which of the two is the policy's; `win_of` knows that it is the first.
            both = (group.completions[0], start_answer)
            comparisons.append(replace(group, completions=both))
    wins: dict[str, float] = {}
    verdicts = await in_chunks(_forgiving(reward), comparisons)
    for group, verdict in zip(comparisons, verdicts, strict=True):
        if isinstance(verdict, Dropped):
            dropped.append(verdict)
        else:
            wins[group.prompt.id] = win_of(verdict)
    if dropped:
        log.warning(
            "of %d comparisons with the start policy %d have no verdict: dropped %s",
            len(dropped) + len(wins),
            len(dropped),
            drop_report(dropped),
        )
    return wins, dropped


def _forgiving(reward: Comparer) -> Judge:
    """`reward.judge`, where groups of a call that fails as a whole are dropped for that.

    A judge's bug must not cost a trained policy its scorecard: the win rate is missing then, and nothing else.
    """

    async def judge(groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        try:
            return await reward.judge(groups)
        # From another process, any class of errors may come, or that it has died.
        except Exception as error:
            why = plain_message(error).strip() or type(error).__name__
            reason = why.splitlines()[0]
            return [Dropped(group.id, "judge_failed", reason) for group in groups]

    return judge


def write_measured(path: Path, measured: Measured) -> None:
    """Keep a scorecard and its answers, so that a resume or another judge reads them instead of asking again."""
    # Replaced as a whole, so that a killed run never leaves half a file to resume from.
    content = {
        "scorecard": measured.card.model_dump(mode="json"),
        "answers": _ANSWERS.dump_python(measured.answers, mode="json"),
    }
    replace_file(path, json.dumps(content))


def read_measured(path: Path) -> Measured:
    """What `write_measured` wrote."""
    content = json.loads(path.read_text())
    card = Scorecard.model_validate(content["scorecard"])
    # Not strict: JSON has lists where the records have tuples.
    answers = _ANSWERS.validate_python(content["answers"], strict=False)
    return Measured(card, answers)
