"""What others may see of a run on a machine that they share: no socket, no secret, no file."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real_runs import (
    ROOT,
    command,
    command_line,
    metric_lines,
    pids_of_session,
    settings,
)
from tests.sockets import exposed

pytestmark = pytest.mark.real

CANARY = "sk-canary-5e1f0c77"
VARIABLES = ("OPENAI_API_KEY", "MY_TOKEN", "WANDB_API_KEY", "HF_TOKEN")
PASSED = ("OPENAI_API_KEY", "MY_TOKEN")


class Run:
    """A run of light workers in the middle of its training, and what it left after it was asked to end."""

    def __init__(self, folder: Path, ray_folder: Path) -> None:
        self.folder = folder
        self.ray_folder = ray_folder
        self.run_dir = folder / "run"
        values = {
            "run.dir": self.run_dir,
            "data.prompts.count": 60,
            "mixture.online_fraction": 1,
            # Light engines take no buckets.
            "weights.transport": "object_store",
            "rollout.num_cpus": 0.1,
            "rollout.prompts_per_call": 2,
            "learner.num_steps": 1000,
            "learner.global_batch": 4,
            "learner.num_cpus": 0.1,
            "checkpoint.interval": 2,
            "evaluation.suites": "[]",
            "cluster.pass_env": str(list(PASSED)).replace("'", '"'),
        }
        environment = {**os.environ, "RAY_TMPDIR": str(ray_folder)}
        environment |= dict.fromkeys(VARIABLES, CANARY)
        with (folder / "output").open("w") as output:
            process = subprocess.Popen(
                command("tests.chaos.light_run", *settings(values)),
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self._wait_for_steps(process)
            pids = pids_of_session(process.pid)
            self.exposed = exposed(pids)
            self.command_lines = [command_line(pid) for pid in pids]
            process.terminate()
            self.status = process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def _wait_for_steps(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + 240
        while len(metric_lines(self.run_dir)) < 3:
            said = (self.folder / "output").read_text()[-3000:]
            assert process.poll() is None and time.monotonic() < end, said
            time.sleep(0.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    # Short, for sockets have short paths.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield Run(tmp_path_factory.mktemp("private"), Path(folder))


def test_nothing_listens_to_other_machines(run: Run) -> None:
    assert run.exposed == []
    assert len(run.command_lines) > 5


def test_a_secret_is_written_nowhere(run: Run) -> None:
    assert not any(CANARY in line for line in run.command_lines)
    searched = 0
    for folder in (run.folder, run.ray_folder):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                searched += 1
                assert CANARY.encode() not in path.read_bytes(), path
    assert searched > 20


def test_only_its_owner_looks_into_a_run_directory(run: Run) -> None:
    assert stat.S_IMODE(run.run_dir.stat().st_mode) == 0o700


def test_it_ended_as_it_was_asked_to(run: Run) -> None:
    assert run.status == 128 + signal.SIGTERM
    said = (run.folder / "output").read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("interrupted; --resume")
