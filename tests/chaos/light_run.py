"""A run whose engine and learner are light: controller, Ray, supervision, judge and all that is on disk are real.

python -m tests.chaos.light_run --run.dir DIR [--section.key value …]

The one weight of its policy is the number of pairs that it was ever trained on, so a pair that is lost or trained twice
shows in the exported policy.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.entry import exit_status
from cluster.run.crew import WorkerTypes
from cluster.run.experiment import Experiment
from cluster.run.run_dir import RunDir
from cluster.runtime.placement import plan
from cluster.runtime.ray_runtime import RayRuntime
from common.config import RunConfig
from common.config.overrides import load_config
from common.records import Judged, RolloutGroup
from reward.eyes.factory import EyeTools
from reward.worker import RewardWorker
from tests.fakes import FakeLearner, FakeRolloutWorker

SLOW = "slow_judge"
"""While a file of this name lies beside the run directory, judges are slow."""
SLOW_S = 1.0


class LightEngine(FakeRolloutWorker):
    """Answers after a while."""

    delay_s = 0.05


class LightLearner(FakeLearner):
    """Needs a while for a step."""

    step_s = 0.1


class Judge(RewardWorker):
    """The real one, which may be slowed down."""

    def __init__(
        self, config: RunConfig, judge: None = None, tools: EyeTools | None = None
    ) -> None:
        super().__init__(config, judge, tools)
        self._slow = Path(config.run.dir).parent / SLOW

    async def rank(self, groups: Sequence[RolloutGroup]) -> list[Judged]:
        """As ever, some time later."""
        begin = time.monotonic()
        while self._slow.exists() and time.monotonic() - begin < SLOW_S:
            await asyncio.sleep(0.05)
        return await super().rank(groups)


def main(words: Sequence[str]) -> int:
    """The exit status of `cluster.train`."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")

    def call() -> None:
        config = load_config(None, list(words))
        bundles = plan(config)
        with RunDir(config, resume=True) as run_dir:
            runtime = RayRuntime(config.cluster, bundles, f"light {run_dir.path}")
            types = WorkerTypes(LightEngine, Judge, LightLearner)
            experiment = Experiment(config, run_dir, runtime, bundles, types)
            try:
                asyncio.run(experiment.run())
            finally:
                runtime.shutdown()

    return exit_status(call, "interrupted; --resume continues from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
