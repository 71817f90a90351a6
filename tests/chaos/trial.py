"""One run under random faults, started again until it ends, and then looked through."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

from cluster.run.auditing import audit
from common.errors import UserError
from tests.chaos.faults import (
    AT_REST,
    KINDS,
    fill_disk,
    heal,
    is_worker,
    roster,
    signal_one,
    slow_judges,
)
from tests.cluster.runtime.job_cluster import JobCluster
from tests.real_runs import ROOT, command, metric_lines, processes, settings

STEPS = 120
BATCH = 8
MOST_STARTS = 40
STUCK_S = 150.0
LASTING_S = (0.5, 2.5)
"""How long a slow judge and a full disk last."""
LONGEST_CALM_S = 30.0
DISK_MB = 160
RARE = {"killed controller": 0.4, "asked to end": 0.2, "interrupted": 0.2}
"""Weights of faults that are drawn less often than others: a controller needs longest to start."""


@dataclass(slots=True)
class Report:
    """What was done to a run, and what became of it.

    Attributes:
        faults: kind -> how often.
        starts: of the controller.
        ends: exit status of a controller -> how often; a number below 0 is a signal.
        last_lines: of controllers that ended by themselves without a signal of ours.
        violations: what must not be; empty for a trial that went well.
    """

    seed: int
    num_nodes: int
    faults: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    seconds: float = 0.0
    last_lines: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def line(self) -> str:
        """As one line of JSON."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return json.dumps(values)


@dataclass(frozen=True, slots=True)
class Calm:
    """Lasts until so many steps are done and this moment has passed."""

    num_steps: int
    until: float

    def is_over(self, num_steps: int, now: float) -> bool:
        """Whether the next fault may come; a run that does not move is not waited for."""
        has_moved = num_steps >= self.num_steps or now > self.until + LONGEST_CALM_S
        return has_moved and now > self.until


class Trial:
    """Owns the folder and the processes of one run.

    Args:
        seed: of the faults, and of the run.
        folder: for the run, which is deleted, and its log, which stays.
        cluster: whose nodes the run uses; None starts one for every start of the controller.
        num_faults: after so many the run is let go on in peace.
        only: kinds of faults; None for all.
    """

    def __init__(
        self,
        seed: int,
        folder: Path,
        num_faults: int,
        cluster: JobCluster | None = None,
        only: frozenset[str] | None = None,
        num_steps: int = STEPS,
    ) -> None:
        self._rng = random.Random(seed)
        self._cluster = cluster
        self._num_faults = num_faults
        self._only = only
        self._num_steps = num_steps
        self._disk = folder / f"trial-{seed}"
        self._run_dir = self._disk / "run"
        self._log = folder / f"trial-{seed}.log"
        self._sessions: list[int] = []
        num_nodes = 1 if cluster is None else cluster.num_nodes
        self.report = Report(seed, num_nodes)

    def run(self) -> Report:
        """Until the run has ended well, or cannot."""
        begin = time.monotonic()
        self._disk.mkdir(parents=True)
        is_mounted = _mount(self._disk)
        try:
            while self.report.starts < MOST_STARTS:
                if self._start_once() == 0:
                    break
                heal(self._run_dir)
                self._fault_at_rest()
            else:
                self._blame(f"not ended after {MOST_STARTS} starts")
            self._look_through()
        finally:
            if is_mounted:
                subprocess.run(["umount", "-l", self._disk], check=False)
            shutil.rmtree(self._disk, ignore_errors=True)
        self.report.seconds = round(time.monotonic() - begin, 1)
        return self.report

    # One start of the controller.

    def _start_once(self) -> int:
        """Start the controller, disturb it until it ends; returns its exit status."""
        report = self.report
        report.starts += 1
        environment = dict(os.environ)
        if self._cluster is not None:
            environment = self._cluster.environment
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                self._words(),
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._sessions.append(process.pid)
        asked = self._disturb(process)
        status = process.wait()
        report.ends[str(status)] += 1
        if status and not asked:
            report.last_lines.append(self._last_line())
        return status

    def _words(self) -> list[str]:
        values = {
            "run.dir": self._run_dir,
            "run.seed": self.report.seed,
            "data.prompts.count": 60,
            "rollout.num_workers": 2,
            "rollout.num_cpus": 0.1,
            "rollout.prompts_per_call": 2,
            "rollout.draw": ("epochs", "by_worth")[self.report.seed % 2],
            "reward.num_workers": 2,
            "learner.num_steps": self._num_steps,
            "learner.global_batch": BATCH,
            "learner.num_ranks": 2,
            "learner.num_cpus": 0.1,
            "mixture.online_fraction": 1,
            # Light engines take no buckets.
            "weights.transport": "object_store",
            "checkpoint.interval": 5,
            "checkpoint.keep": 3,
            "evaluation.suites": "[]",
            "loop.stall_limit_s": STUCK_S,
            "cluster.heartbeat_limit_s": 10,
            "cluster.max_restarts_per_hour": 1000,
        }
        if self._cluster is not None:
            values["cluster.address"] = self._cluster.address
        return command("tests.chaos.light_run", *settings(values))

    def _disturb(self, process: subprocess.Popen[bytes]) -> bool:
        """Let faults happen until the controller ends; returns whether it was told to, or killed."""
        moves = time.monotonic()
        num_lines = self._num_lines()
        calm = self._calm()
        is_asked = False
        while process.poll() is None:
            time.sleep(0.1)
            now = time.monotonic()
            is_training = self._is_roster_of(process.pid)
            # A start has limits of its own.
            if self._num_lines() != num_lines or not is_training:
                num_lines, moves = self._num_lines(), now
            if now - moves > STUCK_S:
                self._blame(
                    f"no step for {STUCK_S:g} s after {dict(self.report.faults)}"
                )
                os.killpg(process.pid, signal.SIGKILL)
                return True
            if is_asked or not is_training or self._is_done():
                calm = self._calm()
            elif calm.is_over(num_lines, now):
                name = self._fault(process)
                is_asked = name in ("killed controller", "asked to end", "interrupted")
                calm = self._calm()
        return is_asked

    def _calm(self) -> Calm:
        """Until the next fault: some come together, others when the run has got over the one before."""
        num_steps = self._rng.choice((0, 0, 1, 3, 6, 10))
        until = time.monotonic() + self._rng.uniform(0.1, 2.0)
        return Calm(self._num_lines() + num_steps, until)

    def _is_roster_of(self, pid: int) -> bool:
        processes = roster(self._run_dir).get("controller", {}).get("processes", [])
        return any(process["pid"] == pid for process in processes)

    def _is_done(self) -> bool:
        return self.report.faults.total() >= self._num_faults

    def _num_lines(self) -> int:
        return len(metric_lines(self._run_dir))

    # Faults.

    def _fault(self, process: subprocess.Popen[bytes]) -> str:
        """Let one happen; returns its name, "" when it could not."""
        actions = self._actions(process)
        names = [name for name in actions if self._only is None or name in self._only]
        weights = [RARE.get(name, 1.0) for name in names]
        (name,) = self._rng.choices(names, weights)
        if not actions[name]():
            return ""
        self.report.faults[name] += 1
        return name

    def _actions(
        self, process: subprocess.Popen[bytes]
    ) -> dict[str, Callable[[], bool]]:
        actions: dict[str, Callable[[], bool]] = {
            "killed controller": lambda: self._send(process, signal.SIGKILL),
            "asked to end": lambda: self._send(process, signal.SIGTERM),
            "interrupted": lambda: self._send(process, signal.SIGINT),
            "slow judge": lambda: self._for_a_while(slow_judges),
            "full disk": lambda: self._for_a_while(fill_disk),
        }
        for role in KINDS:
            actions[f"killed {role}"] = self._signalling(role, signal.SIGKILL)
            actions[f"hanging {role}"] = self._signalling(role, signal.SIGSTOP)
        if self._cluster is not None and self._cluster.num_nodes == 2:
            actions["killed node"] = self._kill_node
        return actions

    def _signalling(self, role: str, number: signal.Signals) -> Callable[[], bool]:
        return lambda: signal_one(self._run_dir, KINDS[role], number, self._rng)

    def _send(self, process: subprocess.Popen[bytes], number: signal.Signals) -> bool:
        process.send_signal(number)
        return True

    def _for_a_while(self, begin: Callable[[Path], bool]) -> bool:
        if not begin(self._run_dir):
            return False
        time.sleep(self._rng.uniform(*LASTING_S))
        heal(self._run_dir)
        return True

    def _kill_node(self) -> bool:
        assert self._cluster is not None
        self._cluster.kill_node()
        time.sleep(self._rng.uniform(*LASTING_S))
        self._cluster.start_node()
        return True

    def _fault_at_rest(self) -> None:
        if self._is_done() or self._rng.random() < 0.4:
            return
        names = [name for name in AT_REST if self._only is None or name in self._only]
        if names:
            name = self._rng.choice(names)
            if AT_REST[name](self._run_dir, self._rng):
                self.report.faults[name] += 1

    # Afterwards.

    def _look_through(self) -> None:
        """The account must be right, every pair trained once, and nothing left behind."""
        try:
            account = audit(self._run_dir)
        except UserError as error:
            self._blame(str(error))
            return
        for fault in account.faults:
            self._blame(f"audit: {fault}")
        if account.num_steps != self._num_steps:
            self._blame(f"{account.num_steps} steps in the account")
        try:
            policy = json.loads((self._run_dir / "policy" / "config.json").read_text())
            weight = policy["weight"]
        except (OSError, ValueError, KeyError) as error:
            weight = f"none ({error})"
        expected = self._num_steps * BATCH
        if weight != expected:
            self._blame(f"policy: expected weight {expected}, got {weight}")
        journal = self._run_dir / "journal" / "events.jsonl"
        self.report.restarts = journal.read_text().count('{"event": "restart"')
        for name in self._processes_left():
            self._blame(f"left behind: {name}")

    def _processes_left(self) -> list[str]:
        """Processes of any session of this trial, after the time that Ray takes to see that its driver is gone."""
        end = time.monotonic() + 60
        while True:
            left = []
            for process in processes():
                is_ours = process.session in self._sessions
                if is_ours or self._is_our_worker(process.pid):
                    left.append(process.name)
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.5)

    def _is_our_worker(self, pid: int) -> bool:
        """Whether it is a worker of the last roster."""
        for worker in roster(self._run_dir).get("workers", {}).values():
            if pid == worker["processes"][0]["pid"]:
                return is_worker(pid)
        return False

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def _blame(self, violation: str) -> None:
        self.report.violations.append(violation)


def _mount(folder: Path) -> bool:
    """Give the run a disk of its own that can be filled, where this user may."""
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "chaos", str(folder)]
    if shutil.which("mount") is None or os.geteuid() != 0:
        return False
    return subprocess.run(words, capture_output=True, check=False).returncode == 0
