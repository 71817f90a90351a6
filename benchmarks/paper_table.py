"""How do offline, online and mixed alignment compare where the truth is known? (arXiv 2407.02477, on rendered worlds)

    python -m benchmarks.paper_table --seeds 0 1 2            # an hour or two; killed, it goes on
    python -m benchmarks.paper_table --only offline-povid mixed --steps 40 --dir runs/longer
    python -m benchmarks.paper_table --world tabletop --steps 40 --pairs 2000     # docs/world2.md

Several of these commands, say one per seed, may share `--dir`; a last one, over all seeds, then only reads.

Every arm starts from the same policy and takes the same number of learner steps on the same prompts. Every seed has
its own pair sets, data order and rollouts. Validation scenes pick the checkpoint, test scenes give the figures. The
start policy is the same in all runs and answers them once. Writes docs/paper_table.md and .svg, of another world
docs/paper_table_WORLD.*, and prints one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measured_on import measured_on
from benchmarks.pair_edits import write_edited
from benchmarks.paper_arms import (
    ARMS,
    JUDGE,
    PAIR_SETS,
    WORLDS,
    Arm,
    arms_of,
)
from benchmarks.paper_page import page_name, write_page
from cluster.evaluation.measure import Evaluator
from cluster.evaluation.measured import read_measured
from common.chat import encoder_of
from common.config import Reward, RunConfig
from common.config.overrides import load_config
from common.config.suites import WorldSuite
from common.data.images import ImageStore
from common.data.pair_writer import spec_of
from common.paths import replace_file
from reward.worker import RewardWorker


def call(words: Sequence[object], log: Path) -> None:
    """Run one of our modules and append its output to `log` (SystemExit when it fails)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    texts = [str(word) for word in words]
    with log.open("a") as file:
        process = subprocess.run(
            [sys.executable, "-m", *texts],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if process.returncode:
        raise SystemExit(
            f"{' '.join(texts)} failed with status {process.returncode}; see {log}"
        )


def run_folder(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    return Path(arguments.dir / "runs" / f"{name}-seed{seed}")


def pairs_folder(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    return Path(arguments.dir / "pairs" / f"{name}-seed{seed}")


def expect_as_asked(
    name: str,
    arm: Arm,
    seed: int,
    arguments: argparse.Namespace,
) -> None:
    """Refuse an arm whose folders were made with other settings: their names do not say it (SystemExit)."""
    run_dir = run_folder(name, seed, arguments)
    if JUDGE in arm.words and not Path(JUDGE).exists():
        raise SystemExit(
            f"{name}: expected its judge in {JUDGE}, got none; run python -m benchmarks.tabletop_judge first"
        )
    if (run_dir / "config.json").exists():
        config = read_config(run_dir)
        expect("steps", config.learner.num_steps, run_dir, arguments)
        suite = config.evaluation.suites[0]
        assert isinstance(suite, WorldSuite), "the arms' presets measure a world"
        expect("scenes", suite.test_scenes, run_dir, arguments)
    if arm.pairs is not None:
        folder = pairs_folder(arm.pairs, seed, arguments)
        spec = spec_of(folder)
        if spec is not None:
            expect("pairs", spec.get("count"), folder, arguments)


def expect(
    flag: str,
    made_with: object,
    folder: Path,
    arguments: argparse.Namespace,
) -> None:
    """Refuse a folder that was made with another value of a flag (SystemExit)."""
    asked = getattr(arguments, flag)
    if asked != made_with:
        raise SystemExit(
            f"--{flag}: expected {made_with}, with which {folder} was made, "
            f"got {asked}; repeat it or choose another --dir"
        )


def read_config(run_dir: Path) -> RunConfig:
    """The configuration that a run was begun with."""
    return RunConfig.model_validate_json((run_dir / "config.json").read_text())


def make_pairs(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    """The pair set of a seed; generated when it is not there yet."""
    out = pairs_folder(name, seed, arguments)
    pair_set = PAIR_SETS[name]
    if (out / "pairs.parquet").exists():
        return out
    world = WORLDS[arguments.world]
    if pair_set.source is not None:
        source = make_pairs(pair_set.source, seed, arguments)
        assert pair_set.edit is not None
        preset = Path(preset_of(ARMS["online"], arguments.world))
        encoder = encoder_of(load_config(preset).model)
        write_edited(source, pair_set.edit, encoder, out)
        return out
    words: list[object] = ["cluster.generate", *pair_set.words_in(world)]
    words += ["--out", out, "--count", arguments.pairs, "--seed", seed]
    call(words, arguments.dir / "logs" / f"{out.name}.log")
    return out


def train(
    name: str,
    arm: Arm,
    seed: int,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Train an arm unless that is done: its scorecards, {"baseline": …, "final": …}, and its seconds, if known."""
    run_dir = run_folder(name, seed, arguments)
    # Written last, so that a run without it goes on where it was killed.
    duration = run_dir / "seconds.json"
    if not duration.exists():
        words: list[object] = ["cluster.train"]
        words += [preset_of(arm, arguments.world), "--resume"]
        for key, value in run_settings(run_dir, arm, seed, arguments).items():
            words.append(f"--{key}={value}")
        # Last, so that an arm may draw otherwise than the others.
        words += arm.words_in(WORLDS[arguments.world])
        # The start policy is the same in all runs: the first one answers for all.
        start = arguments.dir / f"start_{arguments.scenes}_scenes.json"
        baseline = run_dir / "evaluation" / "baseline.json"
        if start.exists():
            replace_file(baseline, start.read_text())
        # What a run took that goes on from a kill is not known.
        is_new = not (run_dir / "config.json").exists()
        begun = time.perf_counter()
        call(words, arguments.dir / "logs" / f"{run_dir.name}.log")
        seconds = time.perf_counter() - begun
        if not start.exists():
            replace_file(start, baseline.read_text())
        duration.write_text(json.dumps(seconds if is_new else None))
    result = oracle_scorecard(run_dir)
    result["seconds"] = json.loads(duration.read_text())
    return result


def preset_of(arm: Arm, world: str) -> str:
    """The arm's file below the repository."""
    return f"cluster/configs/{world}_{arm.preset}.toml"


def run_settings(
    run_dir: Path,
    arm: Arm,
    seed: int,
    arguments: argparse.Namespace,
) -> dict[str, object]:
    """Overrides of the preset that all arms share, by config key."""
    settings: dict[str, object] = {
        "run.dir": run_dir,
        "run.seed": seed,
        "learner.num_steps": arguments.steps,
        "rollout.deterministic": True,
        # As in the papers; the demo's presets may draw otherwise.
        "rollout.draw": "epochs",
        "checkpoint.interval": max(arguments.steps // 2, 1),
        "evaluation.suites.0.validation_scenes": arguments.scenes // 2,
        "evaluation.suites.0.test_scenes": arguments.scenes,
        "evaluation.samples_shown": 0,
    }
    if arm.pairs is not None:
        settings["data.offline.path"] = make_pairs(arm.pairs, seed, arguments)
    return settings


def oracle_scorecard(run_dir: Path) -> dict[str, Any]:
    """The run's answers under the rule-based judge, whichever judge it trained with: win rates are comparable."""
    config = read_config(run_dir)
    baseline = read_measured(run_dir / "evaluation" / "baseline.json")
    final = read_measured(run_dir / "evaluation" / "final.json")
    evaluator = Evaluator(config, ImageStore(run_dir / "evaluation" / "images"))
    oracle = RewardWorker(config.model_copy(update={"reward": Reward()}))
    measured = asyncio.run(evaluator.compare([oracle], final.answers, baseline.answers))
    return {
        "baseline": baseline.card.model_dump(mode="json"),
        "final": measured.card.model_dump(mode="json"),
    }


def column(card: dict[str, Any], world: str, field: str) -> dict[str, Any]:
    """`value` or `interval` (95 %) of the table's metrics, from a scorecard of the world's suite."""
    metrics: dict[str, Any] = card["suites"][world]["metrics"]
    return {name: metrics[name][field] for name, _ in WORLDS[world].metrics}


def verdicts(card: dict[str, Any], world: str) -> dict[str, str]:
    """Metric -> "better" or "worse" where the paired 95 % interval against the start policy says so, else ""."""
    changes: dict[str, Any] = card["suites"][world]["changes"]
    return {
        name: changes[name]["verdict"]
        for name, _ in WORLDS[world].metrics
        if name in changes
    }


def arm_result(title: str, runs: list[dict[str, Any]], world: str) -> dict[str, Any]:
    """One row of the table from the runs of all seeds."""
    finals = [run["final"] for run in runs]
    return {
        "title": title,
        "seeds": [column(card, world, "value") for card in finals],
        "intervals": [column(card, world, "interval") for card in finals],
        "verdicts": [verdicts(card, world) for card in finals],
        "seconds": [run["seconds"] and round(run["seconds"], 1) for run in runs],
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper_table",
        description=(__doc__ or "").split("\n", 1)[0],
    )
    parser.add_argument(
        "--dir",
        type=Path,
        help="runs and pair sets (default: runs/paper_table, of another world runs/paper_table_WORLD)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs"),
        help="folder of the table and the plot",
    )
    parser.add_argument("--world", choices=WORLDS, default="shapes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--steps",
        type=int,
        default=20,
        help="learner steps of every arm, 32 pairs each",
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=600,
        help="prompts of every offline pair set",
    )
    parser.add_argument(
        "--scenes",
        type=int,
        default=200,
        help="test scenes; validation takes half as many",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=ARMS,
        help="some arms; default: all",
    )
    return parser


def main() -> None:
    """Print one JSON object as the last line."""
    arguments = build_parser().parse_args()
    world = arguments.world
    if arguments.dir is None:
        arguments.dir = Path("runs") / page_name(world)
    rows = arms_of(world)
    arms = {name: ARMS[name] for name in arguments.only or rows}
    # Every refusal comes before the first run: an hour later would be too late.
    for seed in arguments.seeds:
        for name, arm in arms.items():
            expect_as_asked(name, arm, seed, arguments)
    runs = train_all(arms, arguments)
    # All runs share the start policy's answers.
    first_run = next(iter(runs.values()))[0]
    baseline = first_run["baseline"]
    arm_results = {}
    for name, arm in arms.items():
        arm_results[name] = arm_result(arm.title, runs[name], world)
    packages = ("torch", "transformers", "deepspeed", "ray")
    result = {
        "benchmark": "paper_table",
        "world": world,
        "baseline": {
            **column(baseline, world, "value"),
            "intervals": column(baseline, world, "interval"),
        },
        "arms": arm_results,
        "not_run": [arm.title for name, arm in rows.items() if name not in arms],
        "seeds": arguments.seeds,
        "steps": arguments.steps,
        "pairs": arguments.pairs,
        "scenes": arguments.scenes,
        **measured_on(packages),
    }
    write_page(result, arguments.out)
    print(json.dumps(result))


def train_all(
    arms: dict[str, Arm],
    arguments: argparse.Namespace,
) -> dict[str, list[dict[str, Any]]]:
    """Every arm's results, one per seed; all arms of a seed come before the next seed."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    num_runs = len(arms) * len(arguments.seeds)
    num_done = 0
    for seed in arguments.seeds:
        for name, arm in arms.items():
            run = train(name, arm, seed, arguments)
            runs[name].append(run)
            num_done += 1
            progress = f"{num_done}/{num_runs} {name} seed {seed}"
            values = column(run["final"], arguments.world, "value")
            print(f"{progress}: {values}", file=sys.stderr, flush=True)
    return runs


if __name__ == "__main__":
    main()
