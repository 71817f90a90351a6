"""The planner against two ranks that train: RAM and tensors within a tenth."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.planner import Case, measure

CASES: list[Case] = [
    {"size": "small", "tuning": "full", "zero_stage": 0, "offload": "none"},
    {"size": "small", "tuning": "full", "zero_stage": 2, "offload": "none"},
]

BOUNDS = {"resident": 0.1, "peak": 0.1, "held": 0.02, "kept": 0.1}
"""RAM has 22 - 30 MB beyond all tensors, of more than 360 here."""


@pytest.mark.real
@pytest.mark.slow
def test_a_plan_is_what_a_rank_takes(tmp_path: Path) -> None:
    for case in measure(tmp_path, CASES):
        for name, bound in BOUNDS.items():
            if name in case:
                error = case[name]["error"]
                assert abs(error) <= bound, (case, name)
