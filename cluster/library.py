"""Runs and jobs as functions, for scripts and notebooks. The commands call the same ones.

    from cluster.library import evaluate, generate, settings, train

    config = settings({"run.dir": "runs/mine", "model.path": MODEL, "data.prompts": "train.jsonl"})
    run = train(config)
    run.final.suites["prompts"].metrics["win_rate"].value

Values are those of `--section.key value`: the keys are listed in docs/reference. Mistakes of the user are `UserError`,
with the line that a command would print.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.config import RunConfig
from common.config.overrides import load

if TYPE_CHECKING:
    from cluster.evaluation.finished_run import FinishedRun
    from cluster.run.run_dir import RunDir
    from common.config.jobs import EvaluateConfig, GenerateConfig
    from reward.suites.scorecard import Scorecard

Config = TypeVar("Config", bound=RunConfig)


def settings(
    values: Mapping[str, Any],
    preset: str | Path | None = None,
    schema: type[Config] = RunConfig,  # type: ignore[assignment]
) -> Config:
    """The config of a preset with other values for some of its keys.

    Args:
        values: by dotted key, such as `{"learner.loss.kind": "ipo"}`; lists and tables may be values.
        preset: a TOML file, or the config.json of a run; none for the defaults.
        schema: the tree: of a run, or of a job as `common.config.jobs` has it.

    Raises:
        UserError: a key or a value is wrong.
    """
    words: list[str] = []
    for key, value in values.items():
        words.append(f"--{key}={_word(value)}")
    return load(schema, None if preset is None else Path(preset), words)


def _word(value: Any) -> str:
    """A value as one writes it on a command line."""
    if isinstance(value, bool | list | tuple | dict):
        # A path may stand in a list, too.
        return json.dumps(value, default=str)
    return str(value)


def train(config: RunConfig, resume: bool = False) -> FinishedRun:
    """Train and measure in `run.dir`, on Ray, as `python -m cluster.train` does.

    Args:
        resume: go on from the last checkpoint in `run.dir`, or begin where there is none. A run that is finished
            already is only read, unless the config now measures it in another size.

    Returns:
        What the run left: its scorecards, config and curves.

    Raises:
        UserError: an input is wrong, or `run.dir` holds a run and `resume` is off; nothing of it is changed.
        Halted: a UserError as well. The run was told to end, or has used its budget up: it is saved, and a resume
            goes on.
        RunFailed: something else went wrong; the traceback is in RUN/errors.log. With SIGHTLINE_DEBUG=1 in the
            environment, and for files that cannot be read or written, the error comes as it is.
    """
    from cluster.evaluation.finished_run import read_run
    from cluster.last_words import last_words
    from cluster.run.run_dir import RunDir

    with RunDir(config, resume) as run_dir:
        if not (run_dir.path / "scorecard.json").exists():
            with last_words(run_dir.path):
                _train(config, run_dir)
    return read_run(run_dir.path)


def _train(config: RunConfig, run_dir: RunDir) -> None:
    from cluster.jobs.event_loop import run_async
    from cluster.placement.bundles import plan
    from cluster.planner.check import check_fits
    from cluster.run.experiment import Experiment
    from cluster.runtime.judge_check import checked_judge
    from cluster.runtime.object_store import push_bytes_of
    from cluster.runtime.ray_runtime import RayRuntime
    from common.chat import check_model
    from common.chat.families import check_bdhs, check_cpu_engines
    from common.sources import ONLINE_BDHS

    # Before Ray starts: what is wrong with the model directory or the judge is said at once.
    encoder = check_model(config.model)
    if not config.rollout.num_gpus:
        check_cpu_engines(encoder, config.model)
    if ONLINE_BDHS in config.online_sources:
        check_bdhs(encoder, config.rollout.bdhs)
    config = checked_judge(config)
    check_fits(config)
    bundles = plan(config)
    owner = f"train {run_dir.path}"
    runtime = RayRuntime(config.cluster, bundles, owner, push_bytes_of(config))
    try:
        run_async(Experiment(config, run_dir, runtime, bundles).run())
    finally:
        runtime.shutdown()


def generate(config: GenerateConfig) -> Path:
    """Make a set of preference pairs, or what is missing of it, as `python -m cluster.generate` does.

    Args:
        config: a `BdhsJobConfig` or a `PovidJobConfig`.

    Returns:
        The folder of the set; `common.data.datasets.read_pairs` reads it.

    Raises:
        UserError: an input is wrong, or no row gave a pair.
    """
    from cluster.generate import make_set

    make_set(config)
    return config.generate.out


def evaluate(config: EvaluateConfig) -> dict[str, Scorecard]:
    """Measure a policy, and before it the one that it started from, as `python -m cluster.evaluate` does.

    Returns:
        The scorecards, as `policy` and, with `evaluate.baseline`, `start`.

    Raises:
        UserError: an input is wrong, or there is nothing to measure.
    """
    from cluster.evaluate import measure_policies

    return measure_policies(config)
