"""The planner against two ranks that train: tensors, RAM, and the peak, which may be less than was planned."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.planner import Case, measure

CASES: list[Case] = [
    {"size": "small", "tuning": "full", "zero_stage": 0, "offload": "none"},
    {"size": "small", "tuning": "full", "zero_stage": 2, "offload": "none"},
]

BOUNDS = {
    "resident": (-0.1, 0.1),
    "peak": (-0.1, 0.15),
    "held": (-0.02, 0.02),
    "kept": (-0.1, 0.1),
}
"""Of planned / measured - 1. RAM is up to 30 MB above all tensors, of more than 360 here, with two threads a rank, and
next to none with one. The planned peak of stage 2 is 5 % above what two threads reach, and 10 % above one: not all that
the plan adds up is there at the same moment."""


@pytest.mark.real
@pytest.mark.slow
def test_a_plan_is_what_a_rank_takes(tmp_path: Path) -> None:
    for case in measure(tmp_path, CASES):
        for name, (least, most) in BOUNDS.items():
            if name in case:
                error = case[name]["error"]
                assert least <= error <= most, (case, name)
