"""One run of `cluster.train` whose parts are all real, the processes of which are struck while it trains.

    struck ──noticed_s──▶ named, and lost ──▶ another one is started ──▶ back
    └──────────────────────────────back_s─────────────────────────────────┘

The moments are those of the journal: its line `restart` is written when a worker is back, and says how long that took.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster.runtime.processes import family
from common.machine.held_files import SHARED_MEMORY, held_by
from tests.chaos.faults import roster
from tests.real_runs import ROOT, command, events, pids_of_session, settings

CORE = "VLLM"
"""How vLLM's engine core names its process; it is the second one of an engine's worker."""
ACTOR = "ray::"
START_LIMIT_S = 400.0
BACK_LIMIT_S = 300.0
END_LIMIT_S = 120.0
POLL_S = 0.2

PRESET = "cluster/configs/shapes_online.toml"
SMALL: Mapping[str, object] = {
    "data.prompts.count": 1000,
    "rollout.num_workers": 2,
    "rollout.num_completions": 2,
    "rollout.max_tokens": 24,
    # Every group is an event of its own: their distances tell when nobody serves.
    "rollout.prompts_per_call": 1,
    "reward.num_workers": 2,
    # Longer than any of these runs.
    "learner.num_steps": 100_000,
    "learner.global_batch": 8,
    "learner.micro_batch": 8,
    "checkpoint.interval": 5,
    "evaluation.suites": "[]",
    # Engines never wait for the learner.
    "loop.max_staleness": 1000,
    "cluster.heartbeat_limit_s": 20,
}
"""A run of the demo's policy whose engines are always at work."""


@dataclass(frozen=True, slots=True)
class Blow:
    """What happens to one process of a worker."""

    name: str
    worker: str
    process: str = ACTOR
    number: signal.Signals = signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a run got over a blow; times in seconds.

    Attributes:
        cause: as the run named it, in one line.
        noticed_s: from the blow until the worker was taken for lost.
        back_s: from the blow until another one could be asked.
        start_s: what the first worker of this place needed at the run's start, from its spawning on.
        others_idle_s: the longest time without a group that came to its outcome, until `back_s`.
        next_step_s: from the blow until the end of the next learner step.
    """

    blow: str
    worker: str
    cause: str
    noticed_s: float
    back_s: float
    start_s: float
    others_idle_s: float
    next_step_s: float

    @property
    def ratio(self) -> float:
        """Of the time to be back to the time of a start."""
        return self.back_s / self.start_s


class RealRun:
    """A run in a session of its own. A context manager: when it is left, nothing of the session is.

    Attributes:
        left_in_memory: files in shared memory that its processes held and that are there after `end`.
    """

    def __init__(self, folder: Path, values: Mapping[str, object]) -> None:
        self.run_dir = folder / "run"
        self.log = folder / "run.log"
        self.left_in_memory: list[str] = []
        values = {"run.dir": self.run_dir, **SMALL, **values}
        words = command("cluster.train", PRESET, "--resume", *settings(values))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def __enter__(self) -> RealRun:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in pids_of_session(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def wait_for(self, condition: Callable[[], bool], limit_s: float) -> None:
        """Wait while the run goes on; AssertionError, with the end of its log, when it ends or takes too long."""
        end = time.monotonic() + limit_s
        while not condition():
            assert self.process.poll() is None, self.log_text()[-3000:]
            assert time.monotonic() < end, self.log_text()[-3000:]
            time.sleep(POLL_S)

    def wait_for_steps(self, count: int) -> None:
        """Wait for so many more steps."""
        count += self.num_steps
        self.wait_for(lambda: self.num_steps >= count, START_LIMIT_S)

    @property
    def num_steps(self) -> int:
        """Learner steps in the journal, those that were done again included."""
        return len(events(self.run_dir, "step"))

    def log_text(self) -> str:
        """What the command has written so far."""
        return self.log.read_text(errors="replace")

    def pid(self, worker: str, process: str) -> int:
        """The first process of a worker whose name begins with this."""
        workers = roster(self.run_dir)["workers"]
        pids = []
        # As they are now: the roster may be older than an engine's core.
        for member in family(workers[worker]["processes"][0]["pid"]):
            if member.name.startswith(process):
                pids.append(member.pid)
        assert pids, (worker, process)
        return pids[0]

    def strike(self, blow: Blow) -> Recovery:
        """Strike, and wait until the run has got over it."""
        num_before = len(self._restarts())
        struck = time.time()
        os.kill(self.pid(blow.worker, blow.process), blow.number)
        self.wait_for(lambda: len(self._restarts()) > num_before, BACK_LIMIT_S)
        back = self._restarts()[num_before]
        self.wait_for(lambda: self._first_step(back["time"]) > 0, BACK_LIMIT_S)
        assert back["name"] == blow.worker, back
        seconds_of_start = events(self.run_dir, "start")[-1]["seconds"]
        return Recovery(
            blow.name,
            blow.worker,
            back["cause"],
            noticed_s=back["time"] - back["seconds"] - struck,
            back_s=back["time"] - struck,
            start_s=seconds_of_start[blow.worker],
            others_idle_s=self.longest_idle_s(struck, back["time"]),
            next_step_s=self._first_step(back["time"]) - struck,
        )

    def longest_idle_s(self, begin: float, end: float) -> float:
        """The longest time without a group's outcome that touches these moments."""
        groups = [event["time"] for event in events(self.run_dir, "group")]
        longest = 0.0
        for before, after in pairwise(sorted(groups)):
            if after > begin and before < end:
                longest = max(longest, after - before)
        return longest

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask for an end; returns the exit status, when no process of the run is left."""
        held = held_by(pids_of_session(self.process.pid))
        self.process.send_signal(number)
        status = self.process.wait(END_LIMIT_S)
        self.wait_until_gone(20)
        self.left_in_memory = sorted(
            name for name in held if (SHARED_MEMORY / name).exists()
        )
        return status

    def wait_until_gone(self, limit_s: float) -> float:
        """Wait until no process is left; returns how long that took. AssertionError after `limit_s`."""
        begun = time.monotonic()
        while pids := self.pids_left():
            assert time.monotonic() < begun + limit_s, [name_of(pid) for pid in pids]
            time.sleep(POLL_S)
        return time.monotonic() - begun

    def pids_left(self) -> list[int]:
        """Processes of this run, its controller apart; Ray's and vLLM's stay in its session."""
        pids = []
        for pid in pids_of_session(self.process.pid):
            if name_of(pid):
                pids.append(pid)
        return pids

    def groups_skipped(self) -> int:
        """Groups without an outcome among those that have one, at the newest checkpoint.

        Those that were in flight with a worker that was lost come to their outcome later: so there are never many.
        """
        newest = max((self.run_dir / "checkpoints").glob("step_*"))
        state = json.loads((newest / "state.json").read_text())
        return len(state["frontier"]["finished"])

    def _restarts(self) -> Sequence[Mapping[str, Any]]:
        return events(self.run_dir, "restart")

    def _first_step(self, after: float) -> float:
        """When the first step ended that ended after this moment; 0 when none did."""
        for event in events(self.run_dir, "step"):
            if event["time"] > after:
                return float(event["time"])
        return 0.0


def name_of(pid: int) -> str:
    """The command line of a process; "" when it has ended, or is a zombie."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
