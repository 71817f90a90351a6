"""Learner ranks as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from common.machine.address import LOOPBACK
from common.paths import replace_file
from learner.engines.ranks import reserved_address

ROOT = Path(__file__).resolve().parents[2]

Case = dict[str, Any]
"""Has a `name`, which is that of its folder; all else is its worker's."""
RunCase = Callable[[Case, int, int, int, Path, Path], None]
"""(case, rank, number of ranks, port, images, folder of the case)."""


def spawn(module: str, world_size: int, *words: object, timeout: float = 1200) -> None:
    """Run `python -m module RANK WORLD words...` for all ranks; their output is shown if one fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    texts = [str(word) for word in words]
    end = time.monotonic() + timeout
    with ExitStack() as stack:
        outputs = [stack.enter_context(TemporaryFile("w+")) for _ in range(world_size)]
        processes = []
        for rank, output in enumerate(outputs):
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(rank), str(world_size), *texts],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            processes.append(process)
            stack.callback(process.kill)
        # Until all have ended, or one has failed, for which the others would wait.
        while None in (codes := [process.poll() for process in processes]):
            if any(codes) or time.monotonic() > end:
                break
            time.sleep(0.05)
        assert codes == [0] * world_size, "\n".join(map(_end_of, outputs))


def _end_of(output: IO[str]) -> str:
    output.seek(0)
    return output.read()[-3000:]


def spawn_cases(
    module: str, world_size: int, cases: Sequence[Case], images: Path, out: Path
) -> None:
    """Let the same ranks run all cases one after the other: to start torch and DeepSpeed takes longer than a case."""
    for case in cases:
        (out / case["name"]).mkdir(parents=True)
    words = [json.dumps(case) for case in cases]
    spawn(module, world_size, images, out, *words)


def run_cases(run: RunCase) -> None:
    """The other end of `spawn_cases`: what a rank's process does; every case has a process group of its own."""
    _, rank, world_size, images, out, *words = sys.argv
    for word in words:
        case: Case = json.loads(word)
        folder = Path(out) / case["name"]
        port = agreed_port(int(rank), folder / "port")
        run(case, int(rank), int(world_size), port, Path(images), folder)


def agreed_port(rank: int, note: Path) -> int:
    """Rank 0 takes a port and keeps it; one that was free minutes ago may be somebody's by now."""
    if rank == 0:
        _, port = reserved_address(LOOPBACK)
        replace_file(note, str(port))
        return port
    while not note.exists():
        time.sleep(0.01)
    return int(note.read_text())
