"""Epochs against prompts drawn by worth: what is read from a run directory, and the figures of both sides by hand."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.arm_runs import rollouts_of, training_seconds
from benchmarks.prompt_value import compared, faults_of, scores_of
from tests.cluster.runs import STEPS, make_config, run


def figures(side: str, pairs: int, rollouts: int, seconds: float) -> dict[str, Any]:
    """One run of seed 0, whose CHAIR_i is 0.1, and whose recall is 0.8 or 0.9 with narrow intervals."""
    recall = 0.8 if side == "epochs" else 0.9
    return {
        "side": side,
        "seed": 0,
        "outcomes": {"pair": pairs, "tie": 3},
        "rollouts": rollouts,
        "training_s": seconds,
        "final": {
            "chair_i": [0.1, 0.05, 0.15],
            "recall": [recall, recall - 0.01, recall + 0.01],
        },
    }


def test_both_sides_by_hand() -> None:
    runs = [figures("epochs", 20, 400, 30.0), figures("by_worth", 21, 140, 20.0)]
    sides = ["epochs", "by_worth"]
    options = argparse.Namespace(preset="demo.toml", steps=100, sides=sides)
    result = compared(runs, options)
    # 0.15 pairs a rollout against 0.05.
    assert result["ratio"] == 3
    assert result["speed_up"] == 1.5
    (seed,) = result["side_by_side"]
    assert seed["apart"] == ["recall"]
    assert seed["final"]["chair_i"]["epochs"] == [0.1, 0.05, 0.15]


def test_a_run_is_read(tmp_path: Path) -> None:
    config = make_config(tmp_path, rollout__num_completions=3)
    _, run_dir = run(config)
    rollouts = rollouts_of(run_dir)
    num_pairs = rollouts["outcomes"]["pair"]
    assert num_pairs >= STEPS * 4
    assert rollouts["rollouts"] == 3 * rollouts["groups"]
    assert rollouts["pairs_per_group"] == round(num_pairs / rollouts["groups"], 4)
    assert 0 < rollouts["prompts_with_pairs"] <= 40
    assert training_seconds(run_dir) > 0
    assert faults_of(run_dir) == []
    card = json.loads((run_dir / "scorecard.json").read_text())["final"]
    chair = card["suites"]["shapes"]["metrics"]["chair_i"]
    assert scores_of(run_dir, "final")["chair_i"] == [
        chair["value"],
        *chair["interval"],
    ]
