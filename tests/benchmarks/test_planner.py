"""The planner against two ranks that train: RAM around an update and at its peak, tensors, activations."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.planner import Case, case_of, measure

CASES: list[Case] = [
    case_of("small", zero_stage=0),
    case_of("small", zero_stage=2),
    case_of("small", tuning="lora", zero_stage=3),
]

BOUNDS = {
    "resident": 0.1,
    "peak": 0.1,
    "held": 0.02,
    "kept": 0.1,
}
"""Of planned / measured - 1, either way."""


@pytest.mark.real
@pytest.mark.long
def test_a_plan_is_what_a_rank_takes(tmp_path: Path) -> None:
    for case in measure(tmp_path, CASES):
        for name, bound in BOUNDS.items():
            if name in case:
                error = case[name]["error"]
                assert abs(error) <= bound, (case, name)
