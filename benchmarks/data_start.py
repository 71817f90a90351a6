"""How long do large data sets take to open, and how much memory? Prompts in JSON lines and offline pairs of ours.

    python -m benchmarks.data_start --prompts 100000 --pairs 1000000

Each is opened as a run does, in a process of its own: what must be known is read, then some records are drawn in
random order. Memory is the process's largest resident set beyond what the imports take. For comparison, `read_pairs`
holds the pairs of a smaller set as objects. One JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NUM_PICTURES = 1000
NUM_DRAWN = 2000
SHARD_PAIRS = 10_000
ANSWER = "There is a red circle at the top, and a blue star below it. " * 6
KINDS = ("prompts", "held_out", "pairs", "objects")


def make_pictures(folder: Path) -> list[str]:
    """Names of small pictures, all different."""
    from PIL import Image

    folder.mkdir(parents=True)
    names = []
    for number in range(NUM_PICTURES):
        color = (number % 256, number // 256, 7)
        name = f"{number}.png"
        Image.new("RGB", (32, 32), color).save(folder / name)
        names.append(name)
    return names


def make_prompts(folder: Path, count: int) -> None:
    """JSON lines about a picture each."""
    names = make_pictures(folder / "pictures")
    with (folder / "prompts.jsonl").open("w") as file:
        for number in range(count):
            row = {
                "image": f"pictures/{names[number % NUM_PICTURES]}",
                "question": f"What is in picture {number}?",
                "answer": ANSWER,
                "label": number,
            }
            file.write(json.dumps(row) + "\n")


def make_pairs(folder: Path, count: int) -> None:
    """A pair set of ours with token ids, written in shards so that making it needs little memory."""
    from common.data.datasets import IMAGES, PAIRS, pair_table, write_tables
    from common.data.images import ImageStore
    from common.data.rows import PAIR_SCHEMA
    from common.records import Message, Part, PreferencePair, Prompt, Response

    store = ImageStore(folder / IMAGES)
    make_pictures(folder / "pictures")
    refs = []
    for path in sorted((folder / "pictures").iterdir()):
        refs.append(store.add_bytes(path.read_bytes()))
    token_ids = tuple(range(1000, 1080))

    def pair(number: int) -> PreferencePair:
        parts = (Part("image"), Part("text", f"What is in picture {number}?"))
        messages = (Message("user", parts),)
        prompt = Prompt(f"p{number}", messages, (refs[number % NUM_PICTURES],), ANSWER)
        rejected = Response(f"{number} {ANSWER}", token_ids)
        return PreferencePair(f"bdhs/{number}", prompt, Response(ANSWER), rejected, "x")

    def tables() -> Any:
        for first in range(0, count, SHARD_PAIRS):
            numbers = range(first, min(count, first + SHARD_PAIRS))
            yield pair_table(map(pair, numbers), store)

    write_tables(folder / PAIRS, PAIR_SCHEMA, tables())


def open_prompts(folder: Path, held_out: float | None) -> Any:
    """The prompts of a run's start."""
    from common.config.data import Data
    from common.data.images import ImageStore
    from common.data.prompt_sources import load_split

    settings = {"prompts": str(folder / "prompts.jsonl"), "validation": held_out}
    data = Data.model_validate(settings)
    store = ImageStore(folder / "store")
    return load_split(data, "train", store, [], folder / "rows")


def open_records(kind: str, folder: Path) -> Any:
    """What is opened, by kind."""
    from common.data.datasets import read_pairs
    from common.data.pairs_on_disk import open_pairs

    if kind == "prompts":
        return open_prompts(folder, None)
    if kind == "held_out":
        return open_prompts(folder, 0.1)
    if kind == "pairs":
        return open_pairs([folder], folder / "rows", [])
    return read_pairs(folder)


def measure(kind: str, folder: Path) -> dict[str, Any]:
    """Open, draw, and report; runs in a process of its own."""
    # Imports everything, without any row.
    import common.data.pairs_on_disk
    import common.data.prompt_sources  # noqa: F401
    from common.data.records_on_disk import fetch

    before = _peak_mb()
    start = time.monotonic()
    cpu_start = time.process_time()
    records = open_records(kind, folder)
    open_s = time.monotonic() - start
    open_cpu_s = time.process_time() - cpu_start
    opened = _peak_mb()
    rng = random.Random(0)
    start = time.monotonic()
    for _ in range(NUM_DRAWN):
        fetch(records, rng.randrange(len(records)))
    draw_s = time.monotonic() - start
    return {
        "records": len(records),
        "open_s": round(open_s, 2),
        "open_cpu_s": round(open_cpu_s, 2),
        "open_mb": round(opened - before, 1),
        "mb": round(_peak_mb() - before, 1),
        "ms_per_record": round(1000 * draw_s / NUM_DRAWN, 3),
    }


def _peak_mb() -> float:
    """The largest resident set of this process so far; getrusage would begin with the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("expected Linux, whose /proc/self/status has VmHWM")


def _measure_apart(kind: str, folder: Path) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.data_start", "--measure", kind]
    answer = subprocess.run(
        [*words, "--folder", str(folder)], check=True, capture_output=True, text=True
    )
    result: dict[str, Any] = json.loads(answer.stdout)
    return result


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="scratch; default: temporary")
    parser.add_argument("--measure", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.folder)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        make_prompts(folder / "prompts", arguments.prompts)
        make_pairs(folder / "pairs", arguments.pairs)
        make_pairs(folder / "objects", arguments.objects)
        results = {}
        for kind in KINDS:
            where = "prompts" if kind == "held_out" else kind
            results[kind] = _measure_apart(kind, folder / where)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
