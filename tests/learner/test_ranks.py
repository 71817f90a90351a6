"""Two DeepSpeed ranks on gloo against one: the same weights, the same metrics, the same refusals."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.images import ImageStore

pytestmark = [pytest.mark.real, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train(world_size: int, stage: int, tuning: str, images: Path, out: Path) -> dict[str, np.ndarray]:
    out.mkdir(parents=True)
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.learner.rank_worker"]
            + [str(part) for part in (rank, world_size, port, stage, tuning, images, out)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = [rank.communicate(timeout=400)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world_size, "\n".join(output[-3000:] for output in outputs)
    return dict(np.load(out / "weights.npz"))


@pytest.mark.parametrize(
    ("stage", "tuning"),
    [
        (0, "full"),
        (2, "full"),
        (3, "full"),
        (0, "lora"),
        (3, "lora"),
        (0, "full+povid"),
        (3, "lora+povid"),
        (2, "full+mdpo+mpo"),
        (3, "lora+mdpo+mpo"),
    ],
)
def test_two_ranks_equal_one(store: ImageStore, tmp_path: Path, stage: int, tuning: str) -> None:
    one = train(1, stage, tuning, store.root, tmp_path / "one")
    two = train(2, stage, tuning, store.root, tmp_path / "two")
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=2e-5, err_msg=name)
    single = (tmp_path / "one" / "rank_0.txt").read_text()
    first, second = ((tmp_path / "two" / f"rank_{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert first.split("]")[0] == single.split("]")[0], "refused pairs"
