"""The scores of one run, kept in its directory: start and final policy on test, every checkpoint on validation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.evaluation.kept import KeptAnswers
from cluster.evaluation.measure import Evaluator
from cluster.evaluation.measured import (
    Measured,
    read_measured,
    write_answer_files,
    write_measured,
)
from cluster.evaluation.samples_page import write_samples
from cluster.evaluation.score_table import harm_lines
from cluster.report import write_scorecards
from cluster.run.recorder import Recorder
from cluster.runtime.clients import RewardClient, RolloutClient
from common.config import RunConfig
from common.data.images import ImageStore
from common.evaluation import Answers, Score
from common.records import Prompt
from reward.suites.scorecard import Scorecard, SuiteCard

log = logging.getLogger("sightline")


class RunScoring:
    """What a run asks of the evaluator, and the files and journal events that come of it."""

    def __init__(self, config: RunConfig, run_dir: Path, recorder: Recorder) -> None:
        self._run_dir = run_dir
        self._folder = run_dir / "evaluation"
        self._recorder = recorder
        self._samples_shown = config.evaluation.samples_shown
        self._evaluator = Evaluator(config, ImageStore(self._folder / "images"))
        # The start policy's answers to validation; empty where no comparison with them picks the checkpoint.
        self._validation_baseline = Answers()

    def announce(self) -> None:
        """Say at the start of a run, in the log and the journal, when nothing will pick its checkpoint.

        Raises:
            UserError: `evaluation.select` names a metric without validation prompts, or what a suite asks on the test
                split cannot be read, such as a benchmark without its pictures.
        """
        # Now, and not when the engines are up.
        self._evaluator.num_items("test")
        # Whoever reads the log must not take the last checkpoint for the best one.
        if self._evaluator.selecting():
            return
        log.warning(
            "evaluation.suites has no validation prompts: nothing picks a checkpoint, the last one becomes the policy"
        )
        self._recorder.no_validation()

    @property
    def asks_anything(self) -> bool:
        """Whether `score` needs an engine: there is a test prompt, or a pair for the grounding gate."""
        return self._evaluator.num_asked("test") > 0

    def validation_prompts(self) -> list[Prompt]:
        """The prompts whose answers pick the checkpoint."""
        prompts: list[Prompt] = []
        for asked in self._evaluator.selecting():
            for task_prompts in asked.prompts.values():
                prompts += task_prompts
        return prompts

    async def score(
        self,
        name: str,
        engines: Sequence[RolloutClient],
        judges: Sequence[RewardClient],
        baseline: Answers | None,
    ) -> Measured:
        """Measure what the engines hold now on the test split; kept on disk, so that a resume reads it.

        `baseline` is None for the start policy.
        """
        path = self._folder / f"{name}.json"
        # Test prompts are asked once: a resume must not measure another draw.
        if path.exists():
            return read_measured(path)
        # The run's directory belongs to one config, and a name to one policy.
        kept = KeptAnswers(self._folder / f"{name}.partial.jsonl", {"policy": name})
        measured = await self._evaluator.measure(
            "test", engines, judges, baseline, f"scoring {name}", kept
        )
        write_measured(path, measured)
        kept.discard()
        return measured

    async def ask_start(self, engines: Sequence[RolloutClient]) -> None:
        """Ask the start policy what picks a checkpoint, where that is a comparison with it; kept on disk.

        `engines` hold the start policy.
        """
        if not self._evaluator.selection.against_start:
            return
        if not self._evaluator.selecting():
            return
        path = self._folder / "validation_baseline.json"
        if not path.exists():
            measured = await self._evaluator.validate(engines, (), None)
            write_measured(path, measured)
        self._validation_baseline = read_measured(path).answers

    async def validate(
        self,
        step: int,
        engines: Sequence[RolloutClient],
        judges: Sequence[RewardClient],
    ) -> Score | None:
        """The score of what the engines hold now on the validation split.

        None when nothing can be measured; then no number is written anywhere.
        """
        if not self._evaluator.selecting():
            return None
        measured = await self._evaluator.validate(
            engines,
            judges,
            self._validation_baseline,
        )
        for suite, suite_card in measured.card.suites.items():
            fields: dict[str, Any] = {"suite": suite, **suite_card.counts}
            for name, metric in suite_card.metrics.items():
                # Metrics of a part of the suite, such as "pope/random/f1", stay in the scorecards.
                if "/" not in name:
                    fields[name] = metric.value
            fields["intervals"] = _intervals(suite_card)
            fields["dropped"] = suite_card.dropped
            self._recorder.validation(step, fields)
        return self._evaluator.selection.score(measured.card)

    def record_pick(self, step: int, score: float | None) -> None:
        """Say which checkpoint became the policy; `score` is None when validation never measured one."""
        if score is not None:
            self._recorder.picked(step, "validation")
            return
        log.warning(
            "the policy is the last checkpoint (step %d): no validation picked one",
            step,
        )
        self._recorder.picked(step, "last")

    def write_report(
        self,
        baseline: Measured,
        final: Measured,
    ) -> tuple[Scorecard, Scorecard]:
        """Write samples.html (when there is a suite), scorecard.json and answer files; returns both scorecards.

        A final policy that is worse than the start policy stays in `policy/`, where validation or the last step has put
        it: the scorecard, the page and the log say so.
        """
        start_card = self._evaluator.start_card(baseline, final)
        baseline = replace(baseline, card=start_card)
        if self._evaluator.suites:
            write_samples(
                self._run_dir / "samples.html",
                self._evaluator.suites,
                final,
                baseline,
                self._samples_shown,
                f"{self._run_dir.name}: test split before and after",
            )
        cards = {"baseline": baseline.card, "final": final.card}
        write_scorecards(self._run_dir / "scorecard.json", cards)
        for name, measured in (("baseline", baseline), ("final", final)):
            write_answer_files(
                self._folder / "answers" / name,
                self._evaluator.suites,
                measured.answers,
                f"{self._run_dir.name}-{name}",
            )
        for line in harm_lines(final.card):
            log.warning("%s", line)
        return baseline.card, final.card


def _intervals(card: SuiteCard) -> dict[str, tuple[float, float]]:
    """The 95 % intervals of a suite's metrics, without those of its parts."""
    intervals: dict[str, tuple[float, float]] = {}
    for name, metric in card.metrics.items():
        if metric.interval is not None and "/" not in name:
            intervals[name] = metric.interval
    return intervals
