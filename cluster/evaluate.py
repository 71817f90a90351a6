"""Measure a policy on scenes it was not trained on, beside the policy it started from.

python -m cluster.evaluate runs/first/policy --baseline common/shapes/policy --samples samples.html
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cluster.entry import exit_status, parse_line

if TYPE_CHECKING:
    from cluster.grounding import Gate
    from cluster.ray_runtime import RayRuntime
    from common.config import RunConfig
    from common.protocols import GenerationRequest
    from common.records import Dropped, Prompt, RolloutGroup, Verdict
    from reward.scorecard import Answers, Scorecard


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the policies are measured, else as cluster.entry says."""
    args, overrides = parse_line(_parser(), argv)

    def call() -> None:
        from common.errors import UserError
        from common.overrides import load_config

        # Nothing is trained here, so no offline pairs are asked for.
        config = load_config(args.preset, ["--mixture.online_fraction=1", *overrides])
        for directory in filter(None, (args.policy, args.baseline)):
            if not (directory / "config.json").is_file():
                raise UserError(
                    f"policy: expected a Hugging Face directory with config.json, got {directory}; check the path"
                )
        asyncio.run(_run(args, config))

    return exit_status(
        call, "interrupted; nothing was written, run the same command again"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.evaluate",
        description="CHAIR, POPE and win rate of a policy on held-out scenes, with 95 % intervals.",
        epilog="Further --section.key value words override the preset, as in cluster.train.",
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
        "--preset", type=Path, metavar="FILE", help="TOML preset (engine, costs, sizes)"
    )
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument(
        "--scenes",
        type=int,
        metavar="N",
        help="default: evaluation.test_scenes / validation_scenes",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the scorecards as JSON"
    )
    parser.add_argument(
        "--samples",
        type=Path,
        metavar="FILE",
        help="write an HTML page of marked captions",
    )
    return parser


async def _run(args: argparse.Namespace, config: RunConfig) -> None:
    from cluster.grounding import grounding_gate
    from cluster.measure import evaluation_prompts
    from cluster.ray_runtime import RayRuntime
    from cluster.samples_page import write_samples
    from common.errors import UserError
    from common.images import ImageStore

    settings = config.evaluation
    scenes = (
        args.scenes
        if args.scenes is not None
        else getattr(settings, f"{args.split}_scenes")
    )
    if scenes < 1:
        raise UserError(
            f"--scenes: expected at least 1, got {scenes}; raise it or evaluation.{args.split}_scenes"
        )
    measured: dict[str, tuple[Scorecard, Answers]] = {}
    with tempfile.TemporaryDirectory(prefix="sightline-images-") as folder:
        store = ImageStore(Path(folder))
        prompts = evaluation_prompts(args.split, scenes, settings, store)
        runtime = RayRuntime(config.cluster)
        try:
            gate = grounding_gate(config, prompts[0], store)
            if args.baseline:
                measured["start"] = await _measure(
                    runtime, args.baseline, config, prompts, gate, None
                )
            start = measured["start"][1] if measured else None
            measured["policy"] = await _measure(
                runtime, args.policy, config, prompts, gate, start
            )
        finally:
            runtime.shutdown()
        if args.samples:
            title = f"{args.policy} on {scenes} {args.split} scenes"
            write_samples(
                args.samples,
                measured["policy"],
                measured.get("start"),
                settings.samples_shown,
                title,
            )
    cards = {name: card for name, (card, _) in measured.items()}
    print_scorecards(cards)
    if args.out:
        write_scorecards(args.out, cards)


async def _measure(
    runtime: RayRuntime,
    policy: Path,
    config: RunConfig,
    prompts: tuple[list[Prompt], list[Prompt]],
    gate: Gate,
    baseline: Answers | None,
) -> tuple[Scorecard, Answers]:
    """Start a rollout worker on `policy`, evaluate it, stop it."""
    from actors.rollout import RolloutWorker
    from cluster.grounding import with_grounding
    from cluster.measure import evaluate
    from cluster.progress import ProgressReport
    from reward.worker import RewardWorker

    options = config.rollout
    handle = runtime.spawn(
        RolloutWorker,
        config,
        0,
        str(policy),
        name="rollout-0",
        num_cpus=options.num_cpus,
        num_gpus=options.num_gpus,
    )
    rewards = RewardWorker(config)

    async def generate(
        requests: list[GenerationRequest],
    ) -> list[RolloutGroup | Dropped]:
        return cast(
            "list[RolloutGroup | Dropped]", await handle.call("generate", requests)
        )

    async def judge(groups: list[RolloutGroup]) -> list[Verdict | Dropped]:
        return await asyncio.to_thread(rewards.judge, groups)

    async def score(
        answers: list[tuple[Prompt, str]],
    ) -> list[tuple[float, ...] | Dropped]:
        return cast(
            "list[tuple[float, ...] | Dropped]", await handle.call("score", answers)
        )

    def count_up(num_answers: int) -> None:
        bar.advance(count=num_answers)

    try:
        with ProgressReport(
            f"asking {policy}", sum(map(len, prompts)) + gate.num_scored
        ) as bar:
            await handle.call("start")
            limit, settings = options.max_tokens, config.evaluation
            found = await evaluate(
                generate, judge, *prompts, baseline, settings, limit, count_up
            )
            found = await with_grounding(
                found, score, gate, baseline, settings, count_up
            )
            await handle.call("close")
            return found
    finally:
        runtime.stop(handle)


def print_scorecards(cards: dict[str, Scorecard]) -> None:
    """A table with one column per policy, values with their 95 % intervals."""
    from rich.console import Console
    from rich.table import Table

    from cluster.samples_page import grounding_lines, metric_rows

    table = Table("metric", *cards, "", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name, better, _, cells in metric_rows(list(cards.values())):
        table.add_row(
            name,
            *(f"{v}  [dim]{bounds}[/dim]" for v, bounds in cells),
            better and f"{better} is better",
        )
    Console().print(table)
    for name, card in cards.items():
        if card.dropped:
            Console().print(f"{name}: not counted {card.dropped}")
    for name, card in cards.items():
        for line, warns in grounding_lines(card):
            Console(soft_wrap=True).print(
                f"{name}: {line}", style="bold yellow" if warns else None, markup=False
            )


def write_scorecards(path: Path, cards: dict[str, Scorecard]) -> None:
    """JSON: policy name -> scorecard."""
    from common.paths import replace_file

    content = {name: card.model_dump(mode="json") for name, card in cards.items()}
    replace_file(path, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
