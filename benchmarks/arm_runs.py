"""Whole `cluster.train` runs in several arms, one after the other, and what their journals say they cost."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

Figures: TypeAlias = dict[str, Any]
MakePairs: TypeAlias = Callable[[Path, int, argparse.Namespace], Path]
"""(folder, seed, options) -> the offline pairs of all arms."""
Measure: TypeAlias = Callable[[str, int, Path, Path, argparse.Namespace], Figures]
"""(arm, seed, offline pairs, folder of the run, options)."""
Compared: TypeAlias = Callable[[list[Figures], argparse.Namespace], Figures]

PARTS = ("time/wait_s", "time/step_s", "time/publish_s")
LIMIT_S = 3600
"""Seconds after which a command is stopped."""


def arms_parser(name: str, doc: str | None, steps: int) -> argparse.ArgumentParser:
    """The options that all such benchmarks have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="cluster/configs/shapes_mixed.toml")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    return parser


def run_arms(
    options: argparse.Namespace,
    arms: Iterable[str],
    make_pairs: MakePairs,
    measure: Measure,
    compared: Compared,
) -> None:
    """Run every arm with every seed; a line of JSON for each, then one for all."""
    arms = list(arms)
    runs: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="sightline-arms-") as name:
        folder = Path(name)
        for seed in options.seeds:
            offline = make_pairs(folder, seed, options)
            for arm in arms:
                run_dir = folder / f"{arm}-{seed}"
                figures = measure(arm, seed, offline, run_dir, options)
                runs.append(figures)
                print(json.dumps(figures), flush=True)
    line = json.dumps(compared(runs, options))
    if options.out is not None:
        options.out.write_text(line + "\n")
    print(line)


def call(words: list[object]) -> float:
    """Run a module of this repository; returns its seconds. What it wrote is shown where it fails."""
    command = [sys.executable, "-m", *map(str, words)]
    begun = time.monotonic()
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    if answer.returncode:
        raise SystemExit(f"{' '.join(command)}\n{answer.stderr[-3000:]}")
    return time.monotonic() - begun


def rollouts_of(run_dir: Path) -> dict[str, Any]:
    """What was sampled and what became of it."""
    from common.journal import read_events

    outcomes: Counter[str] = Counter()
    prompts_with_pairs = set()
    num_completions = 0
    for event in read_events(run_dir / "journal" / "events.jsonl"):
        if event["event"] != "group":
            continue
        outcomes[event["outcome"]] += 1
        num_completions += len(event.get("completions", ()))
        if event["outcome"] == "pair":
            prompts_with_pairs.add(event["prompt"])
    num_groups = outcomes.total()
    num_pairs = outcomes["pair"]
    return {
        "groups": num_groups,
        "rollouts": num_completions,
        "outcomes": dict(outcomes.most_common()),
        "prompts_with_pairs": len(prompts_with_pairs),
        "pairs_per_group": round(num_pairs / num_groups, 4),
        "pairs_per_rollout": round(num_pairs / num_completions, 5),
    }


def training_seconds(run_dir: Path) -> float:
    """Seconds of the loop, of all steps but the first, which begins with an empty buffer."""
    from common.metrics import read_lines

    _, *lines = read_lines(run_dir / "metrics.jsonl")
    seconds = 0.0
    for line in lines:
        for part in PARTS:
            # Not every step is followed by a push.
            seconds += line.get(part, 0.0)
    return seconds
