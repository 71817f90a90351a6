"""The scores of one run, kept in its directory: start and final policy on test, every checkpoint on validation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from cluster.evaluation.measure import (
    Evaluator,
    Measured,
    read_measured,
    write_measured,
)
from cluster.evaluation.samples_page import write_samples
from cluster.report import write_scorecards
from cluster.run.recorder import Recorder
from cluster.runtime.clients import RewardClient, RolloutClient
from common.config import RunConfig
from common.data.images import ImageStore
from common.evaluation import Answers
from common.records import Prompt
from reward.suites.scorecard import Scorecard

log = logging.getLogger("sightline")


class RunScoring:
    """What a run asks of the evaluator, and the files and journal events that come of it."""

    def __init__(self, config: RunConfig, run_dir: Path, recorder: Recorder) -> None:
        self._run_dir = run_dir
        self._recorder = recorder
        self._samples_shown = config.evaluation.samples_shown
        store = ImageStore(run_dir / "evaluation" / "images")
        self._evaluator = Evaluator(config, store)

    def announce(self) -> None:
        """Say at the start of a run, in the log and the journal, when nothing will pick its checkpoint."""
        # Whoever reads the log must not take the last checkpoint for the best one.
        if self.validation_prompts():
            return
        log.warning(
            "evaluation.suites has no validation prompts: nothing picks a checkpoint, the last one becomes the policy"
        )
        self._recorder.no_validation()

    def validation_prompts(self) -> list[Prompt]:
        """The prompts whose answers pick the checkpoint."""
        return self._evaluator.validation_prompts()

    async def score(
        self,
        name: str,
        rollout: RolloutClient,
        reward: RewardClient,
        baseline: Answers | None,
    ) -> Measured:
        """Measure what the engine holds now on the test split; kept on disk, so that a resume reads it.

        `baseline` is None for the start policy.
        """
        path = self._run_dir / "evaluation" / f"{name}.json"
        # Test prompts are asked once: a resume must not measure another draw.
        if path.exists():
            return read_measured(path)
        title = f"scoring {name}"
        measured = await self._evaluator.measure(
            "test", rollout, reward, baseline, title
        )
        write_measured(path, measured)
        return measured

    async def validate(self, step: int, rollout: RolloutClient) -> float | None:
        """The score of what the engine holds now on the validation split, higher is better.

        None when nothing can be measured; then no number is written anywhere.
        """
        if not self.validation_prompts():
            return None
        card = await self._evaluator.validate(rollout)
        for suite, suite_card in card.suites.items():
            fields: dict[str, Any] = {"suite": suite, **suite_card.counts}
            for name, metric in suite_card.metrics.items():
                # Metrics of a part of the suite, such as "pope/random/f1", stay in the scorecards.
                if "/" not in name:
                    fields[name] = metric.value
            fields["dropped"] = suite_card.dropped
            self._recorder.validation(step, fields)
        return self._evaluator.selection(card)

    def record_pick(self, step: int, score: float) -> None:
        """Say which checkpoint became the policy; a negative `score` says that validation never measured one."""
        if score >= 0:
            self._recorder.picked(step, "validation")
            return
        log.warning(
            "the policy is the last checkpoint (step %d): no validation picked one",
            step,
        )
        self._recorder.picked(step, "last")

    def write_report(
        self, baseline: Measured, final: Measured
    ) -> tuple[Scorecard, Scorecard]:
        """Write samples.html (when there is a suite) and scorecard.json; returns both scorecards."""
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
        return baseline.card, final.card
