"""Replay by value against uniform replay: what is read from a run directory, and what is apart by hand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.replay_value import ARMS, compared, pairs_of, scores_of
from common.config.overrides import load_config
from tests.cluster.runs import STEPS, events, make_config, run


def figures(arm: str, rollouts: int, seconds: float, recall: float) -> dict[str, Any]:
    """One run of seed 0."""
    return {
        "arm": arm,
        "seed": 0,
        "rollouts": rollouts,
        "num_trained_online": 80,
        "training_s": seconds,
        "validation": {
            "chair_i": [0.1, 0.05, 0.15],
            "recall": [recall, recall - 0.01, recall + 0.01],
        },
    }


def test_arms_by_hand() -> None:
    runs = [
        figures("uniform", 400, 30.0, recall=0.8),
        figures("online_uses", 200, 20.0, recall=0.81),
        figures("by_value", 400, 33.0, recall=0.9),
    ]
    options = argparse.Namespace(preset="demo.toml", steps=100)
    result = compared(runs, options)
    assert result["against_uniform"] == [
        {
            "arm": "online_uses",
            "seed": 0,
            "apart": [],
            "yield": 2,
            "rollouts": 0.5,
            "training": 0.667,
        },
        {
            "arm": "by_value",
            "seed": 0,
            "apart": ["recall"],
            "yield": 1,
            "rollouts": 1,
            "training": 1.1,
        },
    ]


def test_every_arm_is_a_config() -> None:
    for settings in ARMS.values():
        words = [f"--{key}={value}" for key, value in settings.items()]
        config = load_config(Path("cluster/configs/shapes_mixed.toml"), words)
        assert config.run_ahead == 1


def test_a_run_is_read(tmp_path: Path) -> None:
    config = make_config(tmp_path, mixture__online_uses=2, loop__max_staleness=2)
    _, run_dir = run(config)
    pairs = pairs_of(run_dir)
    assert pairs["num_trained_online"] == STEPS * 4
    assert pairs["num_reused"] == (STEPS - 1) * 2
    assert pairs["faults"] == []
    assert "offline/seen" not in pairs
    *_, last = events(run_dir, "validation")
    scores = scores_of(run_dir, STEPS)
    assert scores["chair_i"] == [last["chair_i"], *last["intervals"]["chair_i"]]
