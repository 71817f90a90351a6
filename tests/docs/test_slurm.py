"""The job script with SLURM, Ray and the training replaced by scripts that write down how they are called."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "cluster" / "slurm.sbatch"
WORDS = ["cluster/configs/x.toml", "--run.dir", "/shared/a run"]
OPTIONS = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "exclusive", "time", "signal",
    "requeue", "open-mode", "output",
}  # fmt: skip
STUBS = {
    # Drops its options and runs the rest here.
    "bin/srun": """
while [[ $1 == --* ]]; do
    [[ $1 == --nodelist=* ]] && export HOST_OF_STEP=${1#--nodelist=}
    shift
done
exec "$@"
""",
    "bin/scontrol": """
if [[ $1 == show ]]; then printf 'n1\\nn2\\n'; else echo "scontrol $*" >> "$LOG"; fi
""",
    "bin/sleep": """
exec /bin/sleep 0.05
""",
    "bin/getent": """
echo "10.0.0.7 STREAM $2"
""",
    ".venv/bin/ray": """
if [[ $1 == status ]]; then
    grep '^ray start' "$LOG" | sed 's/.*/ 1 node_x/'
    exit
fi
echo "ray $* on $HOST_OF_STEP, token $(stat -c '%a %s' "$RAY_AUTH_TOKEN_PATH") $RAY_AUTH_MODE" >> "$LOG"
trap 'echo "ray stopped on $HOST_OF_STEP" >> "$LOG"; exit 0' TERM
while :; do sleep 0.1; done
""",
    ".venv/bin/python": """
echo "$2 ${*:3}" >> "$LOG"
[[ $2 == cluster.doctor ]] && exit "${DOCTOR:-0}"
[[ ${TRAIN:-} ]] && exit "$TRAIN"
trap 'echo "train saved" >> "$LOG"; exit 143' TERM
while :; do sleep 0.1; done
""",
}


class Job:
    """The script, started as SLURM would in a folder of its own."""

    def __init__(self, folder: Path, **variables: str) -> None:
        for name, text in STUBS.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/bin/bash\n{text}")
            path.chmod(0o755)
        self.log = folder / "log"
        self.log.touch()
        self.home = folder / "home"
        environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "LOG": str(self.log),
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_CPUS_ON_NODE": "96",
            "SLURM_GPUS_ON_NODE": "8",
            **variables,
        }
        # A copy: SLURM runs one, too.
        script = shutil.copy(SCRIPT, folder / "script")
        self.process = subprocess.Popen(["bash", script, *WORDS], env=environment)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def wait_for(self, word: str) -> None:
        end = time.monotonic() + 30
        while not any(word in line for line in self.lines()):
            assert time.monotonic() < end, self.lines()
            time.sleep(0.05)

    def end(self) -> int:
        return self.process.wait(timeout=30)

    def tokens(self) -> list[Path]:
        return list((self.home / ".ray").glob("*"))


def test_head_then_workers_then_doctor_then_training(tmp_path: Path) -> None:
    job = Job(tmp_path, TRAIN="0")
    assert job.end() == 0
    head, worker, doctor, train, *rest = job.lines()
    assert head.startswith("ray start --head --port=6379 --node-ip-address=10.0.0.7 ")
    assert head.endswith("--block on n1, token 600 64 token")
    assert worker.startswith(
        "ray start --address=10.0.0.7:6379 --num-cpus=96 --num-gpus=8 "
    )
    assert worker.endswith("--block on n2, token 600 64 token")
    words = " ".join(WORDS)
    assert doctor == f"cluster.doctor {words} --cluster.address 10.0.0.7:6379"
    assert train == f"cluster.train {words} --resume --cluster.address 10.0.0.7:6379"
    assert sorted(rest) == ["ray stopped on n1", "ray stopped on n2"]
    assert job.tokens() == []


def test_a_signal_saves_the_run_and_queues_the_job_again(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.wait_for("cluster.train")
    assert len(job.tokens()) == 1
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 0
    assert job.lines()[4:6] == ["train saved", "scontrol requeue 7"]
    assert job.tokens() == []


def test_a_run_that_fails_is_not_queued_again(tmp_path: Path) -> None:
    job = Job(tmp_path, TRAIN="2")
    assert job.end() == 2
    assert not any(line.startswith("scontrol") for line in job.lines())
    assert job.tokens() == []


def test_nothing_is_trained_on_a_sick_cluster(tmp_path: Path) -> None:
    job = Job(tmp_path, DOCTOR="1")
    assert job.end() == 1
    assert not any(line.startswith("cluster.train") for line in job.lines())
    assert job.tokens() == []


def test_its_options_are_slurms() -> None:
    options = re.findall(r"^#SBATCH --([\w-]+)", SCRIPT.read_text(), re.M)
    assert set(options) == OPTIONS and len(options) == len(OPTIONS)


def test_the_shell_reads_it() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_says_nothing() -> None:
    subprocess.run(["shellcheck", SCRIPT], check=True)
