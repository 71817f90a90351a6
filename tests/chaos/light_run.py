"""A run whose engine and learner are light: controller, Ray, supervision, judge and all that is on disk are real.

python -m tests.chaos.light_run --run.dir DIR [--section.key value …]

The one weight of its policy is the number of pairs that it was ever trained on, so a pair that is lost or trained twice
shows in the exported policy.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from cluster.entry import exit_status
from cluster.last_words import last_words
from cluster.placement.bundles import plan
from cluster.run.crew import WorkerTypes
from cluster.run.experiment import Experiment
from cluster.run.run_dir import RunDir
from cluster.runtime.ray_runtime import RayRuntime
from common.command_line.log_lines import start_lines
from common.config.overrides import load_config
from tests.chaos.light_workers import LightEngine, LightJudge, LightLearner


def main(words: Sequence[str]) -> int:
    """The exit status of `cluster.train`."""
    start_lines("controller")

    def call() -> None:
        config = load_config(None, list(words))
        bundles = plan(config)
        with RunDir(config, resume=True) as run_dir:
            runtime = RayRuntime(config.cluster, bundles, f"light {run_dir.path}")
            types = WorkerTypes(LightEngine, LightJudge, LightLearner)
            experiment = Experiment(config, run_dir, runtime, bundles, types)
            try:
                with last_words(run_dir.path):
                    asyncio.run(experiment.run())
            finally:
                runtime.shutdown()

    return exit_status(call, "interrupted; --resume continues from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
