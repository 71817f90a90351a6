"""How do offline, online and mixed alignment compare where the truth is known? (arXiv 2407.02477, on the shapes world)

    python -m benchmarks.paper_table --seeds 0 1 2            # an hour or two; killed, it goes on
    python -m benchmarks.paper_table --only offline-povid mixed --steps 40 --dir runs/longer

Several of these commands, say one per seed, may share `--dir`; a last one, over all seeds, then only reads.

Every arm starts from the same policy and takes the same number of learner steps on the same prompts; every seed has
its own pair sets, data order and rollouts. The checkpoint is picked on validation scenes, the figures are those of test
scenes; the start policy, the same in all runs, answers them once. Writes docs/paper_table.md and .svg, prints one JSON
object as its last line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.paper_arms import ARMS, PAIR_SETS, Arm
from benchmarks.paper_page import METRICS, write_page
from cluster.measure import Evaluator, read_measured
from common.config import Reward, RunConfig
from common.images import ImageStore
from common.pair_writer import spec_of
from common.paths import replace_file
from common.records import Dropped, RolloutGroup, Verdict
from reward.worker import RewardWorker


def call(words: Sequence[object], log: Path) -> None:
    """Run a module of ours; its output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        done = subprocess.run(
            [sys.executable, "-m", *map(str, words)],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise SystemExit(
            f"{' '.join(map(str, words))} failed with status {done.returncode}; see {log}"
        )


def run_folder(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    return Path(arguments.dir / "runs" / f"{name}-seed{seed}")


def pairs_folder(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    return Path(arguments.dir / "pairs" / f"{name}-seed{seed}")


def expect_as_asked(
    name: str, arm: Arm, seed: int, arguments: argparse.Namespace
) -> None:
    """What is there of a run must be what is asked for: folder names do not say it (SystemExit otherwise)."""
    there: list[tuple[str, Path, object]] = []
    run_dir = run_folder(name, seed, arguments)
    if (run_dir / "config.json").exists():
        config = read_config(run_dir)
        there += [
            ("steps", run_dir, config.learner.num_steps),
            ("scenes", run_dir, config.evaluation.suites[0].test_scenes),
        ]
    if (
        arm.pairs is not None
        and (spec := spec_of(pairs := pairs_folder(arm.pairs, seed, arguments)))
        is not None
    ):
        there.append(("pairs", pairs, spec.get("count")))
    for flag, folder, found in there:
        if found != (asked := getattr(arguments, flag)):
            raise SystemExit(
                f"--{flag}: expected {found}, with which {folder} was made, got {asked}; repeat it or choose another "
                "--dir"
            )


def read_config(run_dir: Path) -> RunConfig:
    """The configuration that a run was begun with."""
    return RunConfig.model_validate_json((run_dir / "config.json").read_text())


def make_pairs(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    """The pair set of a seed, made if it is not there."""
    out = pairs_folder(name, seed, arguments)
    if not (out / "pairs.parquet").exists():
        words = [
            *PAIR_SETS[name].words,
            "--out",
            out,
            "--count",
            arguments.pairs,
            "--seed",
            seed,
        ]
        call(["cluster.generate", *words], arguments.dir / "logs" / f"{out.name}.log")
    return out


def train(
    name: str, arm: Arm, seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Scorecards of one run, {"baseline": …, "final": …}, and its seconds."""
    run_dir = run_folder(name, seed, arguments)
    took = run_dir / "seconds.json"
    if not took.exists():
        settings: dict[str, object] = {
            "run.dir": run_dir,
            "run.seed": seed,
            "learner.num_steps": arguments.steps,
            "rollout.deterministic": True,
            "checkpoint.interval": max(arguments.steps // 2, 1),
            "evaluation.suites.0.validation_scenes": arguments.scenes // 2,
            "evaluation.suites.0.test_scenes": arguments.scenes,
            "evaluation.samples_shown": 0,
        }
        if arm.pairs is not None:
            settings["data.offline.path"] = make_pairs(arm.pairs, seed, arguments)
        words = [f"cluster/configs/shapes_{arm.preset}.toml", "--resume", *arm.words]
        start, own = (
            arguments.dir / f"start_{arguments.scenes}_scenes.json",
            run_dir / "evaluation" / "baseline.json",
        )
        if start.exists():
            replace_file(own, start.read_text())
        begun = time.perf_counter()
        call(
            [
                "cluster.train",
                *words,
                *(f"--{key}={value}" for key, value in settings.items()),
            ],
            arguments.dir / "logs" / f"{run_dir.name}.log",
        )
        if not start.exists():
            replace_file(start, own.read_text())
        took.write_text(json.dumps(time.perf_counter() - begun))
    return {**oracle_scorecard(run_dir), "seconds": json.loads(took.read_text())}


class Oracle:
    """The rule-based judge, in this process."""

    def __init__(self, config: RunConfig) -> None:
        self._worker = RewardWorker(config.model_copy(update={"reward": Reward()}))

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        return await self._worker.judge(groups)


def oracle_scorecard(run_dir: Path) -> dict[str, Any]:
    """The run's answers under the rule-based judge, whichever judge it trained with: win rates are comparable."""
    config = read_config(run_dir)
    baseline = read_measured(run_dir / "evaluation" / "baseline.json")
    final = read_measured(run_dir / "evaluation" / "final.json")
    evaluator = Evaluator(config, ImageStore(run_dir / "evaluation" / "images"))
    card = asyncio.run(
        evaluator.compare(Oracle(config), final.answers, baseline.answers)
    )
    return {
        "baseline": baseline.card.model_dump(mode="json"),
        "final": card.model_dump(mode="json"),
    }


def figures(card: dict[str, Any]) -> dict[str, float]:
    """The table's columns of one scorecard."""
    return {name: shapes_metrics(card)[name]["value"] for name, _ in METRICS}


def bounds(card: dict[str, Any]) -> dict[str, list[float]]:
    """The 95 % intervals of the table's columns."""
    return {name: shapes_metrics(card)[name]["interval"] for name, _ in METRICS}


def shapes_metrics(card: dict[str, Any]) -> dict[str, Any]:
    metrics: dict[str, Any] = card["suites"]["shapes"]["metrics"]
    return metrics


def main() -> None:
    """Prints one JSON object as its last line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper_table",
        description=(__doc__ or "").split("\n", 1)[0],
    )
    parser.add_argument(
        "--dir", type=Path, default=Path("runs/paper_table"), help="runs and pair sets"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs"),
        help="folder of the table and the plot",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--steps",
        type=int,
        default=20,
        help="learner steps of every arm, 32 pairs each",
    )
    parser.add_argument(
        "--pairs", type=int, default=600, help="prompts of every offline pair set"
    )
    parser.add_argument(
        "--scenes",
        type=int,
        default=200,
        help="test scenes; validation takes half as many",
    )
    parser.add_argument(
        "--only", nargs="+", choices=ARMS, help="some arms; default: all"
    )
    arguments = parser.parse_args()
    arms = {name: ARMS[name] for name in arguments.only or ARMS}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    total = len(arms) * len(arguments.seeds)
    for seed in arguments.seeds:
        for name, arm in arms.items():
            expect_as_asked(name, arm, seed, arguments)
    for seed in arguments.seeds:
        for name, arm in arms.items():
            runs[name].append(train(name, arm, seed, arguments))
            done = sum(map(len, runs.values()))
            print(
                f"{done}/{total} {name} seed {seed}: {figures(runs[name][-1]['final'])}",
                file=sys.stderr,
                flush=True,
            )
    baseline = next(iter(runs.values()))[0]["baseline"]
    result = {
        "benchmark": "paper_table",
        "baseline": figures(baseline) | {"intervals": bounds(baseline)},
        "arms": {
            name: {
                "title": arms[name].title,
                "seeds": [figures(run["final"]) for run in found],
                "intervals": [bounds(run["final"]) for run in found],
                "seconds": [round(run["seconds"], 1) for run in found],
            }
            for name, found in runs.items()
        },
        "not_run": [arm.title for name, arm in ARMS.items() if name not in arms],
        "seeds": arguments.seeds,
        "steps": arguments.steps,
        "scenes": arguments.scenes,
        "versions": {
            name: metadata.version(name)
            for name in ("torch", "transformers", "deepspeed", "ray")
        },
    }
    write_page(result, arguments.out)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
