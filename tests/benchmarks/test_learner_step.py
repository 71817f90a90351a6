"""The step benchmark's command on its smallest model: every figure is there, and both sides do the same."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.step_sweep import COMPLETIONS, PROMPT_TOKENS, sweep


@pytest.mark.real
@pytest.mark.slow
def test_the_command_says_what_it_promises(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.learner_step",
        "--size",
        "smoke",
        "--steps",
        "1",
        "--batch",
        "2",
    ]
    done = subprocess.run(
        [*command, "--out", tmp_path / "found.json"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "found.json").read_text())
    for name in ("ratio", "ratio_fresh", "ratio_cached", "memory_ratio", "floor_frac"):
        assert found[name] > 0, name
    assert found["loss_error"] < 1e-4
    assert found["sides"]["peer"]["liger_kernel"] is False
    assert set(found["versions"]) == {"torch", "transformers", "trl", "peft"}


def test_the_sweeps_ratio_is_its_smallest(tmp_path: Path) -> None:
    """TRL makes 2 pairs per second everywhere, ours 8, but 5 at the longest prompt."""

    def run_side(args: argparse.Namespace, side: str, *_: Path) -> dict[str, float]:
        ours = 5.0 if args.prompt_tokens == PROMPT_TOKENS[-1] else 8.0
        return {"pairs_per_s": ours if side == "fresh" else 2.0}

    args = argparse.Namespace(
        size="smoke", dtype="float32", threads=1, sweep=tmp_path / "sweep.svg"
    )
    found = sweep(args, run_side)
    assert found["ratio"] == 2.5
    assert [value for value, _ in found["pairs_per_s"]["completions"]["peer"]] == list(
        COMPLETIONS
    )
    assert (tmp_path / "sweep.svg").exists()
