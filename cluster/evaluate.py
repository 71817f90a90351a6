"""Measure a policy on prompts it was not trained on, beside the policy it started from.

python -m cluster.evaluate runs/first/policy --baseline common/shapes/policy --preset cluster/configs/shapes_mixed.toml
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.entry import exit_status, parse_line

if TYPE_CHECKING:
    from cluster.evaluation.measure import Evaluator, Measured
    from cluster.runtime.clients import RewardClient
    from cluster.runtime.ray_runtime import RayRuntime
    from common.config import RunConfig
    from common.evaluation import Answers, Split


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the policies are measured, else as cluster.entry says."""
    args, overrides = parse_line(_parser(), argv)

    def call() -> None:
        from common.config.overrides import load_config

        # Nothing is trained here, so no offline pairs are asked for.
        config = load_config(args.preset, ["--mixture.online_fraction=1", *overrides])
        if args.scenes is not None:
            config = _with_scenes(config, args.split, args.scenes)
        _check_policies(args)
        asyncio.run(_run(args, config))

    return exit_status(
        call, "interrupted; nothing was written, run the same command again"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.evaluate",
        description="What the suites of a config measure of a policy on held-out prompts, with 95 % intervals.",
        epilog="Further --section.key value words override the preset, as in cluster.train; "
        """--evaluation.suites '["shapes"]' names suites without a preset.""",
    )
    parser.add_argument(
        "policy",
        type=Path,
        metavar="POLICY_DIR",
        help="Hugging Face directory of the policy",
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="DIR",
        help="policy it started from, measured first",
    )
    parser.add_argument(
        "--preset",
        type=Path,
        metavar="FILE",
        help="TOML preset (suites, engine, costs, sizes)",
    )
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument(
        "--scenes",
        type=int,
        metavar="N",
        help="short for evaluation.suites.*.test_scenes / validation_scenes",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the scorecards as JSON"
    )
    parser.add_argument(
        "--samples",
        type=Path,
        metavar="FILE",
        help="write an HTML page of marked answers",
    )
    return parser


def _check_policies(args: argparse.Namespace) -> None:
    from common.errors import UserError

    for directory in (args.policy, args.baseline):
        if directory is not None and not (directory / "config.json").is_file():
            raise UserError(
                f"policy: expected a Hugging Face directory with config.json, got {directory}; check the path"
            )


def _with_scenes(config: RunConfig, split: str, num_scenes: int) -> RunConfig:
    """The config with this many scenes in every suite that has scenes."""
    from common.errors import UserError

    if num_scenes < 1:
        raise UserError(f"--scenes: expected at least 1, got {num_scenes}; raise it")
    key = f"{split}_scenes"
    suites = []
    for suite in config.evaluation.suites:
        has_scenes = key in type(suite).model_fields
        update = {key: num_scenes} if has_scenes else {}
        suites.append(suite.model_copy(update=update))
    evaluation = config.evaluation.model_copy(update={"suites": tuple(suites)})
    return config.model_copy(update={"evaluation": evaluation})


async def _run(args: argparse.Namespace, config: RunConfig) -> None:
    from cluster.evaluation.measure import Evaluator
    from cluster.evaluation.samples_page import write_samples
    from cluster.report import print_scorecards, write_scorecards
    from cluster.runtime.ray_runtime import RayRuntime
    from common.chat import check_model
    from common.data.images import ImageStore

    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(prefix="sightline-images-") as folder:
        evaluator = Evaluator(config, ImageStore(Path(folder)))
        _check_prompts(evaluator, args.split)
        # Before Ray starts: what is wrong with a model directory is said at once.
        for directory in filter(None, (args.baseline, args.policy)):
            check_model(config.model, directory)
        runtime = RayRuntime(config.cluster)
        split: Split = args.split
        try:
            start = None
            if args.baseline:
                measured["start"] = await _measure(
                    runtime, evaluator, config, split, args.baseline, None
                )
                start = measured["start"].answers
            measured["policy"] = await _measure(
                runtime, evaluator, config, split, args.policy, start
            )
        finally:
            runtime.shutdown()
        if args.samples:
            write_samples(
                args.samples,
                evaluator.suites,
                measured["policy"],
                measured.get("start"),
                config.evaluation.samples_shown,
                f"{args.policy} on the {args.split} split",
            )
    cards = {name: policy.card for name, policy in measured.items()}
    print_scorecards(cards)
    if args.out:
        write_scorecards(args.out, cards)


def _check_prompts(evaluator: Evaluator, split: Split) -> None:
    """Refuse (UserError) to start engines when there is nothing to measure."""
    from common.errors import UserError

    if not evaluator.num_prompts(split) and evaluator.gate(split).missing is not None:
        raise UserError(
            f"evaluation.suites: expected suites with prompts of the {split} split, or evaluation.pairs, got none; "
            """name some: --evaluation.suites '["shapes"]', or --preset FILE"""
        )


async def _measure(
    runtime: RayRuntime,
    evaluator: Evaluator,
    config: RunConfig,
    split: Split,
    policy: Path,
    baseline: Answers | None,
) -> Measured:
    """Start workers for a policy, measure it, and stop them.

    `baseline` is None for the start policy, which is compared with nothing.
    """
    from actors.rollout import RolloutWorker
    from cluster.runtime.clients import RewardClient, RolloutClient
    from reward.worker import RewardWorker

    limit_s = config.loop.call_timeout_s
    # One policy at a time: two engines may not fit on the machine.
    engine = runtime.spawn(
        RolloutWorker,
        config,
        0,
        str(policy),
        name="rollout-0",
        num_cpus=config.rollout.num_cpus,
        num_gpus=config.rollout.num_gpus,
    )
    handles = [engine]
    try:
        reward: RewardClient | None = None
        if baseline is not None:
            judge = runtime.spawn(
                RewardWorker,
                config,
                name="reward-0",
                num_cpus=config.reward.num_cpus,
                num_gpus=0,
            )
            handles.append(judge)
            reward = RewardClient(judge, limit_s)
        rollout = RolloutClient(engine, limit_s)
        await rollout.start()
        measured = await evaluator.measure(
            split, rollout, reward, baseline, f"asking {policy}"
        )
        await rollout.close()
        return measured
    finally:
        for handle in handles:
            runtime.stop(handle)


if __name__ == "__main__":
    sys.exit(main())
