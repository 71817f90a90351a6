"""Learner ranks as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.sockets import free_port

ROOT = Path(__file__).resolve().parents[2]

Case = dict[str, Any]
"""Has a `name`, which is that of its folder; all else is its worker's."""
RunCase = Callable[[Case, int, int, int, Path, Path], None]
"""(case, rank, number of ranks, port, images, folder of the case)."""


def spawn(module: str, world_size: int, *words: object, timeout: float = 1200) -> None:
    """Run `python -m module RANK WORLD words...` for all ranks; their output is shown if one fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    texts = [str(word) for word in words]
    processes: list[subprocess.Popen[str]] = []
    for rank in range(world_size):
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(world_size), *texts],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
    ends_of_outputs = []
    try:
        for process in processes:
            output, _ = process.communicate(timeout=timeout)
            ends_of_outputs.append(output[-3000:])
    finally:
        # Of ranks that wait for one that has failed.
        for process in processes:
            process.kill()
    for process in processes:
        assert process.returncode == 0, "\n".join(ends_of_outputs)


def spawn_cases(
    module: str, world_size: int, cases: Sequence[Case], images: Path, out: Path
) -> None:
    """Let the same ranks run all cases one after the other: to start torch and DeepSpeed takes longer than a case."""
    for case in cases:
        (out / case["name"]).mkdir(parents=True)
    # A process group per case, and a port of its own for each of them.
    ports = json.dumps([free_port() for _ in cases])
    words = [json.dumps(case) for case in cases]
    spawn(module, world_size, ports, images, out, *words)


def run_cases(run: RunCase) -> None:
    """The other end of `spawn_cases`: what a rank's process does."""
    _, rank, world_size, ports, images, out, *words = sys.argv
    for word, port in zip(words, json.loads(ports), strict=True):
        case: Case = json.loads(word)
        folder = Path(out) / case["name"]
        run(case, int(rank), int(world_size), port, Path(images), folder)
