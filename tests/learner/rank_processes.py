"""Learner ranks as processes of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
