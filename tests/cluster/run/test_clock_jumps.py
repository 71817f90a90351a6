"""A clock that is set while a run goes on changes nothing but the times that are written down."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from cluster.run.auditing import audit
from tests.cluster.runs import STEPS, killed_at, make_config, run, trained_pairs
from tests.real_runs import metric_lines

YEARS = (1.8e9, 0.5e9, 2.6e9, 1.0)
"""Seconds since 1970, in 2027, 1985, 2052 and 1970."""


def test_a_clock_that_jumps_disturbs_neither_run_nor_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = itertools.cycle(YEARS)
    monkeypatch.setattr(time, "time", lambda: next(times))
    config = make_config(tmp_path, checkpoint__interval=2)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(6))
    _, run_dir = run(config, resume=True)
    account = audit(run_dir)
    assert account.faults == []
    trained = trained_pairs(run_dir)
    assert len(set(trained)) == len(trained) == STEPS * 4
    for line in metric_lines(run_dir):
        assert 0 <= line["time/wait_s"] < 60
