"""Three deaths on one run of real parts; `python -m tests.chaos.real_deaths` has more (docs/reliability.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.real_deaths import HALF_CPUS, faults_of
from tests.chaos.real_run import CORE, Blow, RealRun

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.chaos]

BLOWS = (
    Blow("engine core killed", "rollout/0", CORE),
    Blow("reward worker killed", "reward/0"),
    Blow("the only rank killed", "learner/0"),
)
NOTICED_S = 20.0
"""A heartbeat comes every 5 s; the machine may have other work."""
MOST_RATIO = 2.0
"""Twice a start's time and some seconds: 1.5 alone would be a matter of what else the machine does."""
CAUSES = {
    "rollout/0": "its engine's process ended by SIGKILL",
    "reward/0": "its process ended without a word",
    "learner/0": "its process ended without a word",
}


def test_an_engine_a_judge_and_the_learner_come_back(tmp_path: Path) -> None:
    with RealRun(tmp_path, HALF_CPUS) as run:
        run.wait_for_steps(2)
        recoveries = []
        for blow in BLOWS:
            recoveries.append(run.strike(blow))
            # Shown where the test fails.
            print(recoveries[-1])
        status = run.end()
        assert faults_of(run, BLOWS, status) == []
    for recovery in recoveries:
        assert recovery.cause.startswith(CAUSES[recovery.worker])
        assert recovery.noticed_s < NOTICED_S
        assert recovery.back_s < NOTICED_S + MOST_RATIO * recovery.start_s
