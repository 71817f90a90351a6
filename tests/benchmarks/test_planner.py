"""The planner against two ranks that train: RAM and tensors within a tenth."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.planner import FIGURES, Case, measure

CASES: list[Case] = [
    {"size": "small", "tuning": "full", "zero_stage": 0, "offload": "none"},
    {"size": "small", "tuning": "full", "zero_stage": 2, "offload": "none"},
]


@pytest.mark.real
@pytest.mark.slow
def test_a_plan_is_what_a_rank_takes(tmp_path: Path) -> None:
    for case in measure(tmp_path, CASES):
        for name in FIGURES:
            if name in case:
                error = case[name]["error"]
                assert abs(error) <= 0.1, (case, name)
