"""The step benchmark's command on its smallest model: every figure is there, and both sides do the same."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks.step_sweep import COMPLETIONS, PROMPT_TOKENS, sweep
from tests.real_runs import run_to_end


@pytest.mark.real
@pytest.mark.long
def test_the_command_says_what_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a process in which a learner has run.
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("RANK", "0")
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.learner_step"]
    command += ["--size", "smoke"]
    command += ["--steps", "1"]
    command += ["--batch", "2"]
    command += ["--out", str(out)]
    result = json.loads(run_to_end(command, 300).splitlines()[-1])
    assert result == json.loads(out.read_text())
    for name in ("ratio", "ratio_fresh", "ratio_cached", "memory_ratio", "floor_frac"):
        assert result[name] > 0, name
    assert 0 < result["input_share"]["with"] < 1
    assert 0 < result["input_share"]["without"] < 1
    assert result["loss_error"] < 1e-4
    assert result["sides"]["peer"]["liger_kernel"] is False
    assert set(result["versions"]) == {"torch", "transformers", "trl", "peft"}


def test_the_sweeps_ratio_is_its_smallest(tmp_path: Path) -> None:
    """TRL makes 2 pairs per second everywhere, ours 8, but 5 at the longest prompt."""

    def run_side(args: argparse.Namespace, side: str, *_: Path) -> dict[str, float]:
        if side != "fresh":
            return {"pairs_per_s": 2.0}
        is_longest = args.prompt_tokens == PROMPT_TOKENS[-1]
        return {"pairs_per_s": 5.0 if is_longest else 8.0}

    plot = tmp_path / "sweep.svg"
    args = argparse.Namespace(size="smoke", dtype="float32", threads=1, sweep=plot)
    result = sweep(args, run_side)
    assert result["ratio"] == 2.5
    points = result["pairs_per_s"]["completions"]["peer"]
    assert [num_completions for num_completions, _ in points] == list(COMPLETIONS)
    assert plot.exists()
