"""The one way to measure a policy, shared by runs and `cluster.evaluate`. Knows neither Ray nor vLLM.

suites' tasks ──▶ engines' generate (greedy) ──answers──▶ judges (against the start policy)
        pairs ──▶ engines' score ──log-probs──┐                     │ verdicts
                                              ▼                     ▼
Scorecard ◀── harm ◀── changes from the start policy ◀── Suite.measure
        ▲
        └──── grounding gate (engines' score)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cluster.evaluation.asking import Answering, Asker
from cluster.evaluation.cards import beside_itself, suite_card
from cluster.evaluation.grounding import AskedSuite, Gate, grounding_gate, pass_gate
from cluster.evaluation.kept import KeptAnswers
from cluster.evaluation.measured import (
    Measured,
    Verdicts,
)
from cluster.evaluation.selection import Selection
from cluster.evaluation.verdicts import Comparer, compare
from cluster.progress import ProgressReport
from common.config import RunConfig
from common.data.images import ImageStore
from common.errors import UserError
from common.evaluation import (
    Answers,
    Comparison,
    Split,
    SuiteAnswers,
    TaskPrompts,
)
from common.protocols import GenerationRequest, Suite
from common.records import Dropped, Prompt, RolloutGroup
from common.row_faults import drop_report
from reward.suites.changes import harm_of
from reward.suites.factory import make_suites
from reward.suites.scorecard import Scorecard, SuiteCard


class Evaluator:
    """Asks the suites of a config and measures what a policy answers."""

    def __init__(self, config: RunConfig, store: ImageStore) -> None:
        """`store` takes the pictures that suites and the grounding gate make.

        Raises:
            UserError: `evaluation.select` names no metric of the suites.
        """
        self.suites = make_suites(config)
        self.selection = Selection(self.suites, config.evaluation.select)
        self._settings = config.evaluation
        self._max_tokens = config.rollout.max_tokens
        self._store = store
        self._asked: dict[Split, list[AskedSuite]] = {}

    def asked(self, split: Split) -> list[AskedSuite]:
        """What every suite asks of a split."""
        if split not in self._asked:
            # Kept: rendering or reading the pictures of a split takes seconds.
            asked: list[AskedSuite] = []
            for suite in self.suites:
                dropped: list[Dropped] = []
                prompts = suite.prompts(split, self._store, dropped)
                pairs = suite.pairs(split, self._store, dropped)
                asked.append(AskedSuite(suite, prompts, pairs, dropped))
            self._asked[split] = asked
        return self._asked[split]

    def prompts(self, split: Split) -> dict[str, TaskPrompts]:
        """The prompts of a split by suite and task."""
        return {asked.suite.name: asked.prompts for asked in self.asked(split)}

    def num_items(self, split: Split) -> int:
        """How many answers are generated or scored in all suites."""
        return sum(asked.num_items for asked in self.asked(split))

    def selecting(self) -> list[AskedSuite]:
        """What of the validation split picks a checkpoint (UserError when `evaluation.select` picks by nothing)."""
        return self.selection.asked(self.asked("validation"))

    def num_asked(self, split: Split) -> int:
        """All that `measure` asks of an engine: the suites' prompts, and the answers of the gate's pairs."""
        return self.num_items(split) + self.gate(split).num_answers

    def gate(self, split: Split) -> Gate:
        """The grounding gate's pairs (UserError when `evaluation.pairs` is no pair set)."""
        return grounding_gate(self._settings, self.asked(split), self._store)

    async def measure(
        self,
        split: Split,
        engines: Sequence[Answering],
        judges: Sequence[Comparer],
        baseline: Answers | None,
        title: str,
        kept: KeptAnswers | None = None,
    ) -> Measured:
        """Ask everything, compare with the start policy, measure, and pass the grounding gate.

        Args:
            engines: with the weights that are measured; all of them are asked.
            judges: compare with the baseline; none are needed without one.
            baseline: the start policy's answers to the same tasks; None says that this is the start policy.
            title: of the progress bar.
            kept: what a killed evaluation of this policy left; what is there is not asked again.

        Returns:
            The scorecard and the answers. What could not be generated or judged is counted in the scorecard.

        Raises:
            UserError: an engine does not answer within its limit, or the policy can be asked none of the prompts, or
                where there are none, none of the pairs.
        """
        # A pair set that cannot be read is refused before anything is asked.
        gate = self.gate(split)
        num_items = self.num_items(split) + gate.num_answers
        with ProgressReport(title, num_items) as bar:

            def count_up(num_done: int) -> None:
                bar.advance(count=num_done)

            asker = Asker(engines, kept, count_up)
            asked = self.asked(split)
            answers = await self._answers(asker, asked)
            measured = await self._measured(asked, judges, answers, baseline, kept)
            start_logps = None if baseline is None else baseline.grounding
            grounding, logps = await pass_gate(gate, asker, start_logps, self._settings)
        is_only_measure = gate.missing is None and not self.num_items(split)
        if is_only_measure and not any(logps.values()):
            raise UserError(
                f"evaluation.pairs: expected pairs that the policy can score, got none; dropped {grounding.dropped}; "
                "correct the pairs or the policy's settings"
            )
        card = measured.card.model_copy(update={"grounding": grounding})
        answers = replace(answers, grounding=logps)
        return replace(measured, card=card, answers=answers)

    async def compare(
        self,
        judges: Sequence[Comparer],
        answers: Answers,
        baseline: Answers,
    ) -> Measured:
        """Measure test answers that are there already, without the grounding gate; arguments as of `measure`."""
        return await self._measured(self.asked("test"), judges, answers, baseline)

    async def validate(
        self,
        engines: Sequence[Answering],
        judges: Sequence[Comparer],
        baseline: Answers | None,
    ) -> Measured:
        """Measure on the validation split what picks a checkpoint; arguments as of `measure`.

        The baseline is of the validation split. It may be empty unless `selection.against_start`: then nothing is
        compared, and there is no win rate.
        """
        asked = self.selecting()
        answers = await self._answers(Asker(engines), asked)
        return await self._measured(asked, judges, answers, baseline)

    def start_card(self, start: Measured, final: Measured) -> Scorecard:
        """The start policy's scorecard with what the judge said of its answers beside the final policy's."""
        cards = dict(start.card.suites)
        for suite in self.suites:
            verdicts = final.verdicts.get(suite.name, {})
            if not verdicts or suite.name not in cards:
                continue
            cards[suite.name] = beside_itself(
                cards[suite.name],
                suite,
                start.answers.suites[suite.name],
                verdicts,
                self._settings.bootstrap_samples,
            )
        return start.card.model_copy(update={"suites": cards})

    async def _answers(self, asker: Asker, asked: Sequence[AskedSuite]) -> Answers:
        """Greedy answers to all prompts and log-probs of all pairs, suite after suite, task after task.

        Raises:
            UserError: the policy can be asked none of them.
        """
        by_suite: dict[str, SuiteAnswers] = {}
        for of_suite in asked:
            name = of_suite.suite.name
            tasks: dict[str, tuple[RolloutGroup, ...]] = {}
            dropped: list[Dropped] = []
            for task, prompts in of_suite.prompts.items():
                requests = [self._request(prompt) for prompt in prompts]
                results = await asker.generate(f"{name}/{task}", requests)
                answered, lost = _split_dropped(results)
                tasks[task] = tuple(answered)
                dropped += lost
            logps, lost = await asker.score_pairs(f"pairs/{name}", of_suite.pairs)
            dropped += lost
            by_suite[name] = SuiteAnswers(tasks, logps, tuple(dropped))
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

    async def _measured(
        self,
        asked: Sequence[AskedSuite],
        judges: Sequence[Comparer],
        answers: Answers,
        baseline: Answers | None,
        kept: KeptAnswers | None = None,
    ) -> Measured:
        """The scorecard of answers, beside those of the start policy where it is not the start policy's own."""
        verdicts: Verdicts = {}
        cards: dict[str, SuiteCard] = {}
        for of_suite in asked:
            suite = of_suite.suite
            suite_answers = answers.suites[suite.name]
            # Lost on the way here; the suite adds what it could not count itself.
            lost = [*of_suite.dropped, *suite_answers.dropped]
            comparison: Comparison | None = None
            if baseline is not None:
                start = baseline.suites.get(suite.name)
                comparison, failures = await _comparison(
                    judges,
                    suite,
                    suite_answers,
                    start,
                    kept,
                )
                verdicts[suite.name] = dict(comparison.verdicts)
                lost += failures
            cards[suite.name] = suite_card(
                suite,
                suite_answers,
                comparison,
                lost,
                self._settings.bootstrap_samples,
            )
        changes = {name: card.changes for name, card in cards.items()}
        harm = harm_of(changes, self.selection.names)
        scorecard = Scorecard(
            suites=cards,
            harm=harm,
        )
        return Measured(
            scorecard,
            answers,
            verdicts,
        )


async def _comparison(
    judges: Sequence[Comparer],
    suite: Suite,
    answers: SuiteAnswers,
    start: SuiteAnswers | None,
    kept: KeptAnswers | None,
) -> tuple[Comparison, list[Dropped]]:
    """What answers are held against, and the comparisons that failed; `start` is None where nothing is compared."""
    if start is None:
        return Comparison(SuiteAnswers()), []
    verdicts, failures = await compare(
        judges,
        suite,
        answers,
        start,
        kept,
    )
    return Comparison(start, verdicts), failures


def _check_answers(by_suite: Mapping[str, SuiteAnswers]) -> None:
    """Refuse (UserError) answers of which every one was dropped: a scorecard without a number would say nothing."""
    dropped: list[Dropped] = []
    for answers in by_suite.values():
        if answers.logps or any(answers.tasks.values()):
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
