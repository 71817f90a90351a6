"""Measures a judge on labelled pairs: `python -m cluster.evaluate judge PAIRS_DIR`.

    python -m cluster.evaluate judge data/labelled --reward.judge.kind policy --out judge.json --page judge.html

Agreement with the labels, position and length bias, ties, what it finds without the pictures, and the pairs on which it
errs. The judge is that of `--preset` and of `--reward.judge.…`, as in a run.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.entry import add_preset, command_parser, exit_status, parse_line
from cluster.flags import JUDGE_FLAGS
from cluster.jobs.event_loop import run_async
from common.config.flags import add_flags, given_flags
from common.config.jobs import JudgeJobConfig
from common.config.overrides import describe_keys, load
from common.errors import UserError
from common.paths import check_output_file

if TYPE_CHECKING:
    from cluster.evaluation.judge_quality import JudgedPairs
    from common.records import PreferencePair


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 when the judge is measured, else as cluster.entry says."""

    def call() -> None:
        config = config_of(argv)
        for output in (config.test_judge.out, config.test_judge.page):
            if output is not None:
                check_output_file(output)
        run_async(_run(config))

    return exit_status(call, "interrupted; run the same command again")


def config_of(argv: Sequence[str]) -> JudgeJobConfig:
    """The config that a command line asks for (UserError as `load`)."""
    arguments, overrides = parse_line(_parser(), argv)
    given = given_flags(arguments, JUDGE_FLAGS)
    return load(JudgeJobConfig, arguments.preset, overrides, given, JUDGE_FLAGS)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "python -m cluster.evaluate judge",
        __doc__ or "",
        f"config keys:\n{describe_keys(JudgeJobConfig)}",
    )
    add_flags(parser, JUDGE_FLAGS)
    add_preset(parser)
    return parser


async def _run(config: JudgeJobConfig) -> None:
    from cluster.evaluation.judge_page import write_judge_page
    from cluster.report import print_judge_quality
    from cluster.runtime.judge_check import checked_judge
    from common.paths import replace_file
    from reward.judge_quality import measure_judge

    config = checked_judge(config)
    settings = config.test_judge
    pairs = _read_pairs(settings.pairs, settings.count)
    with tempfile.TemporaryDirectory(prefix="sightline-images-") as folder:
        judged = await _judge(config, pairs, Path(folder))
    quality = measure_judge(
        config.reward.judge.kind,
        pairs,
        judged.seen,
        judged.blind,
        judged.dropped,
        config.evaluation.bootstrap_samples,
    )
    if not quality.num_pairs:
        raise UserError(
            f"reward.judge: expected verdicts, got none on {len(pairs)} pairs; {judged.drop_report()}; repair the judge"
        )
    cost = {"seconds_per_pair": judged.seconds / len(pairs), "usage": judged.usage}
    quality = quality.model_copy(update=cost)
    # Printed first: what was measured must outlive an output that cannot be written.
    print_judge_quality(quality)
    if settings.out is not None:
        replace_file(settings.out, quality.model_dump_json(indent=2) + "\n")
    if settings.page is not None:
        write_judge_page(settings.page, quality, pairs, judged, settings.cases)
        print(f"look: {settings.page}")


def _read_pairs(directory: Path, count: int | None) -> list[PreferencePair]:
    """The pairs to judge, evenly spread over the set; those left out are said (UserError when there is none)."""
    from common.data.anatomy import evenly
    from common.data.datasets import count_pairs, iter_pairs
    from common.records import Dropped
    from common.row_faults import drop_report

    dropped: list[Dropped] = []
    rows = frozenset(evenly(count_pairs(directory), count))
    pairs = list(iter_pairs(directory, dropped, rows))
    if not pairs:
        raise UserError(
            f"{directory}: expected labelled pairs, got none of {len(rows)} rows; dropped {drop_report(dropped)}; "
            "repair the rows"
        )
    if dropped:
        print(f"not read: {drop_report(dropped)}")
    return pairs


async def _judge(
    config: JudgeJobConfig, pairs: Sequence[PreferencePair], folder: Path
) -> JudgedPairs:
    """The judge's verdicts; grey pictures are put into `folder`."""
    from actors.rollout import RolloutWorker
    from cluster.evaluation.judge_quality import judge_pairs
    from cluster.placement.bundles import judging_plan
    from cluster.runtime.clients import RewardClient
    from cluster.runtime.judge_engines import JudgeEngines
    from cluster.runtime.ray_runtime import RayRuntime
    from common.data.images import ImageStore
    from reward.eyes.factory import EyeTools
    from reward.worker import RewardWorker

    store = ImageStore(folder) if config.test_judge.blind else None
    bundles = judging_plan(config)
    runtime = RayRuntime(config.cluster, bundles, "evaluate judge")
    try:
        engines = JudgeEngines(config, runtime.spawn, RolloutWorker)
        await engines.start()
        handle = runtime.spawn(
            RewardWorker,
            config,
            None,
            EyeTools(engines.clients),
            name="reward/0",
            num_cpus=config.reward.num_cpus,
            num_gpus=config.reward.num_gpus,
        )
        reward = RewardClient(handle, config.loop.call_timeout_s)
        await reward.start()
        judged = await judge_pairs(reward, pairs, store)
        return replace(judged, usage=await reward.usage())
    finally:
        runtime.shutdown()
