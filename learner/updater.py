"""What one rank does with a planned global batch: losses and what they need, one update, means over ranks."""

from __future__ import annotations

from collections.abc import Mapping

from common.config import RunConfig
from common.records import Dropped, StepResult
from common.seeding import derive_seed
from learner.batch.plan import BatchPlan
from learner.engines.ranks import gather
from learner.losses.noised_image import NoisedImages
from learner.losses.objective import Objective
from learner.losses.reward_shift import RewardShift
from learner.model.models import Models
from learner.skipped_steps import SkippedSteps
from learner.update import (
    Metrics,
    PairTable,
    accumulate,
    margins_of,
    reduce_tables,
)


class Updater:
    """Of one rank, from its start to its end.

    Attributes:
        reward_shift: the mean reward of the steps so far, which losses read.
        num_skipped: steps so far that changed nothing.
        margins: pair -> its implicit reward margin in the last step.
    """

    def __init__(self, config: RunConfig, models: Models) -> None:
        self.reward_shift = RewardShift()
        self.num_skipped = 0
        self.margins: Mapping[str, float] = {}
        self._config = config
        self._models = models
        self._skipped_steps = SkippedSteps(
            config.learner.max_skipped_steps,
            config.run.dir,
            writes=models.engine.rank == 0,
            num_steps=config.learner.num_steps,
        )

    def update(self, step: int, plan: BatchPlan) -> tuple[Metrics, bool]:
        """Forward, backward and update of a global batch (collective).

        Returns:
            Metrics over all ranks, and whether the update was skipped.

        Raises:
            UserError: `learner.max_skipped_steps` batches in a row were not finite, or had no usable pair.
        """
        if plan.pairs:
            metrics, skipped = self._update(step, plan)
        else:
            # A batch without a usable pair counts as skipped.
            self._skipped_steps.note_empty(step, plan.dropped)
            metrics, skipped = {}, True
            self.margins = {}
        self.num_skipped += skipped
        return metrics, skipped

    @property
    def counters(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"steps_skipped": self.num_skipped, **self.reward_shift.counters}

    def restore(self, counters: Mapping[str, float]) -> None:
        """Go on from the counters of a checkpoint."""
        self.num_skipped = int(counters["steps_skipped"])
        self.reward_shift = RewardShift.of(counters)

    def _update(self, step: int, plan: BatchPlan) -> tuple[Metrics, bool]:
        models = self._models
        objective = Objective.of(
            self._config.learner, plan.pairs, self.reward_shift.mean
        )
        noised_images = self._noised_images(step, objective)
        table = accumulate(models, plan, objective, noised_images)
        update = models.engine.step()
        tables = gather(table, models.engine.world_size)
        metrics = reduce_tables(tables, plan.rows)
        self.margins = margins_of(tables, plan.rows)
        metrics.update(update)
        skipped = bool(metrics.pop("skipped", 0.0))
        self._skipped_steps.note(step, skipped, plan.pairs)
        if not skipped:
            self._shift_rewards(tables, plan, objective)
        return metrics, skipped

    def _noised_images(self, step: int, objective: Objective) -> NoisedImages | None:
        """None when no pair of the global batch has a loss that needs them."""
        if not objective.needs_noised_images:
            return None
        seed = derive_seed(self._config.run.seed, "povid", step)
        return NoisedImages(self._models, objective, seed)

    def _shift_rewards(
        self,
        tables: list[PairTable],
        plan: BatchPlan,
        objective: Objective,
    ) -> None:
        """Add the rewards of a step to the mean that losses read."""
        reads_mean = [objective.needs(pair).mean_reward for pair in plan.rows]
        self.reward_shift = self.reward_shift.after(tables, reads_mean)


def result_of(
    step: int,
    plan: BatchPlan,
    metrics: Metrics,
    skipped: bool,
    margins: Mapping[str, float],
) -> tuple[StepResult, list[Dropped]]:
    """What a step returns; the pairs of a skipped step are dropped."""
    trained = plan.pairs
    dropped = list(plan.dropped)
    if skipped:
        for pair in plan.pairs:
            drop = Dropped(pair.id, "step_skipped", "loss or gradient not finite")
            dropped.append(drop)
        trained = []
    metrics["pairs/trained"] = float(len(trained))
    trained_ids = tuple(pair.id for pair in trained)
    return StepResult(step, metrics, trained_ids, margins), dropped
