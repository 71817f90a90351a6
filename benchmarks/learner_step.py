"""Our learner's step beside TRL's DPOTrainer: `python -m benchmarks.learner_step [--batch 4 --steps 4 --device cpu]`.

One random model of LLaVA-1.5's architecture (42 M parameters, 576 image tokens, 32,000 words), the same pairs with
completions of 100 tokens, float32, full fine-tuning, frozen tower, AdamW, both sides with the same pairs per forward.
Pictures are JPEGs of 640 x 480 pixels, as COCO's are. Every side runs in a process of its own, one after the other:
TRL, ours on fresh pairs, the same with a worker process that reads the pictures ahead, ours with reference log-probs
on disk. The first step of each warms up; the counted time holds everything, reading pictures included.

    ratio_fresh     our pairs per second over TRL's, each pair seen for the first time; also as ratio
    ratio_ahead     the same with pictures read ahead
    ratio_cached    the same with reference log-probs found on disk (image features are made anew)
    memory_ratio    peak memory above weights (policy and reference), ours over TRL's
    input_share     time/input_s over time/step_s, `with` the worker process and `without`
    floor_frac      work that must be done (see step_model.must_flops) / (our fresh step x rate of a large product)
    floor_frac_matmul   the same by the rate of torch.matmul, which is not always the best that torch has
    loss_error      max |Δ| of the losses: before the first update it is log 2, after it both sides must agree

On a GPU, TRL's side has Liger's kernels where the package liger_kernel is installed (`sides.peer.liger_kernel`).
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measured_on import measured_on

PASSED = (
    "size", "device", "tuning", "batch", "micro_batch", "prompt_tokens", "pairs_per_prompt", "steps", "threads"
)  # fmt: skip
RANK_VARIABLES = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OURS = ("fresh", "ahead", "cached")
PACKAGES = ("torch", "transformers", "trl", "peft")


def build_parser() -> argparse.ArgumentParser:
    """The command line; --side, --model and --images are for the processes of the sides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size",
        choices=("issue", "smoke", "sweep", "7b"),
        help="default: issue (CPU), 7b (GPU), sweep (--sweep)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--tuning",
        choices=("full", "lora"),
        help="default: full on a CPU, lora on a GPU",
    )
    parser.add_argument("--batch", type=int, default=4, help="pairs per update")
    parser.add_argument(
        "--micro-batch", type=int, help="pairs per forward, on both sides; default: all"
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=0,
        help="image included; 0: as the size has it",
    )
    parser.add_argument(
        "--pairs-per-prompt",
        type=int,
        default=1,
        help="pairs in a row with one prompt and picture",
    )
    parser.add_argument(
        "--sweep",
        metavar="SVG",
        help="instead: pairs/s against prompt tokens and completions, drawn",
    )
    parser.add_argument("--steps", type=int, default=4, help="counted steps")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--sides",
        nargs="+",
        default=["peer", *OURS],
        choices=["peer", *OURS],
    )
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    for name in ("side", "model", "images"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser


def parse() -> argparse.Namespace:
    """The arguments, with the defaults that depend on others."""
    args = build_parser().parse_args()
    cuda = args.device == "cuda"
    default_size = "7b" if cuda else "issue"
    if args.sweep:
        default_size = "sweep"
    args.size = args.size or default_size
    args.tuning = args.tuning or ("lora" if cuda else "full")
    args.dtype = "bfloat16" if cuda else "float32"
    args.micro_batch = args.micro_batch or args.batch
    return args


def run_side(
    args: argparse.Namespace,
    side: str,
    model: Path,
    images: Path,
) -> dict[str, Any]:
    """One side in a fresh process; its last line is its figures."""
    command: list[object] = [
        sys.executable,
        "-m",
        "benchmarks.learner_step",
        "--side",
        side,
        "--model",
        model,
        "--images",
        images,
    ]
    for name in PASSED:
        flag = name.replace("_", "-")
        command += [f"--{flag}", getattr(args, name)]
    # A rank that the caller may be is none of a side's: TRL's trainer would look for the others.
    environment = {
        name: value for name, value in os.environ.items() if name not in RANK_VARIABLES
    }
    environment["OMP_NUM_THREADS"] = str(args.threads)
    environment["HF_HUB_OFFLINE"] = "1"
    if args.device == "cpu":
        # Hidden from TRL's trainer, which would take any GPU it sees.
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [str(word) for word in command],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if figures:
        print(
            f"{side:7s} {figures['step_s']:7.2f} s a step, {figures['pairs_per_s']:.3f} pairs/s, "
            f"{figures['peak_mib']:.0f} MiB above the weights, losses {figures['losses']}",
            flush=True,
        )
    return figures


def summary(
    args: argparse.Namespace,
    sides: dict[str, dict[str, Any]],
    num_parameters: int,
) -> dict[str, Any]:
    """Ratios of what was run."""
    from benchmarks.step_model import must_flops, size_of

    ours = {name: sides[name] for name in OURS if name in sides}
    figures: dict[str, Any] = {}
    for name, side in ours.items():
        work = must_flops(
            size_of(args),
            args.batch,
            cached=name == "cached",
            lora=args.tuning == "lora",
            per_prompt=args.pairs_per_prompt,
        )
        # The share of a step's time that the work takes at a large product's rate.
        suffix = "" if name == "fresh" else f"_{name}"
        work_per_s = work / side["step_s"]
        by_best = work_per_s / side["gemm_flops"]
        by_matmul = work_per_s / side["matmul_flops"]
        figures[f"floor_frac{suffix}"] = round(by_best, 6)
        figures[f"floor_frac_matmul{suffix}"] = round(by_matmul, 6)
    peer = sides.get("peer")
    if peer is not None:
        for name, side in ours.items():
            figures[f"ratio_{name}"] = round(peer["step_s"] / side["step_s"], 2)
    if peer is not None and "fresh" in ours:
        figures["ratio"] = figures["ratio_fresh"]
        memory_ratio = ours["fresh"]["peak_mib"] / peer["peak_mib"]
        figures["memory_ratio"] = round(memory_ratio, 3)
    if "fresh" in ours and "ahead" in ours:
        figures["input_share"] = {
            "with": ours["ahead"]["input_share"],
            "without": ours["fresh"]["input_share"],
        }
    figures["loss_error"] = _loss_error([side["losses"] for side in sides.values()])
    return {
        "benchmark": "learner_step",
        **figures,
        "sides": sides,
        "size": args.size,
        "device": args.device,
        "tuning": args.tuning,
        "dtype": args.dtype,
        "batch": args.batch,
        "micro_batch": args.micro_batch,
        "steps": args.steps,
        "threads": args.threads,
        "num_parameters": num_parameters,
    }


def _loss_error(curves: list[list[float]]) -> float:
    """The largest difference between curves, and of a first loss, where policy and reference are one, from log 2."""
    errors = []
    for curve in curves:
        errors.append(abs(curve[0] - math.log(2)))
        for loss, other in zip(curve, curves[0], strict=True):
            errors.append(abs(loss - other))
    return max(errors)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """All sides on one model, one after the other."""
    from benchmarks.step_model import SIZES, build

    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        model = Path(folder) / "model"
        images = Path(folder) / "images"
        num_parameters = build(SIZES[args.size], model, args.dtype)
        sides = {}
        for side in args.sides:
            if side == "cached":
                run_side(args, "fill", model, images)
            sides[side] = run_side(args, side, model, images)
    return summary(args, sides, num_parameters)


def main() -> None:
    args = parse()
    if args.side:
        from benchmarks.step_sides import ours, peer

        run = peer if args.side == "peer" else ours
        figures = run(args)
        # On a line of its own, whatever the libraries printed before.
        print("\n" + json.dumps(figures))
        return
    if args.sweep:
        from benchmarks.step_sweep import sweep

        figures = sweep(args, run_side)
    else:
        figures = compare(args)
    line = json.dumps({**figures, **measured_on(PACKAGES)})
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
