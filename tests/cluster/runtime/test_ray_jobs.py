"""`ray job submit` as the README has it: from a fresh clone, with a token, on two nodes; stopped, and run to the end.

The nodes have no folder in common but `/`: the second one has its own copy of the package, as another machine has.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from cluster.run.auditing import audit
from tests.cluster.runtime.job_cluster import RAY, JobCluster
from tests.real_runs import ROOT, events, metric_lines, settings

pytestmark = pytest.mark.real

PRESET = "cluster/configs/shapes_online.toml"
SMALL = {
    "data.prompts.count": 40,
    "learner.global_batch": 4,
    "learner.micro_batch": 4,
    "learner.engine": "torch",
    "evaluation.suites": "[]",
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository, with what a user has lying about: a run, and an environment."""
    folder = tmp_path_factory.mktemp("clone") / "sightline"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    (folder / "runs" / "old").mkdir(parents=True)
    (folder / "runs" / "old" / "weights").write_bytes(bytes(20 << 20))
    (folder / ".venv" / "lib").mkdir(parents=True)
    (folder / ".venv" / "lib" / "torch.so").write_bytes(bytes(20 << 20))
    return folder


@pytest.fixture(scope="module")
def nodes() -> Iterator[JobCluster]:
    with JobCluster(with_token=True, num_nodes=2) as cluster:
        yield cluster


def ray(cluster: JobCluster, *words: str, cwd: Path = ROOT, **changes: str) -> str:
    """What a command of Ray's says; its exit status may be anything."""
    answer = subprocess.run(
        [sys.executable, *RAY, *words],
        cwd=cwd,
        env={**cluster.environment, "RAY_API_SERVER_ADDRESS": cluster.dashboard}
        | changes,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    return answer.stdout + answer.stderr


def submit(
    cluster: JobCluster,
    clone: Path,
    values: Mapping[str, object],
    *options: str,
    **changes: str,
) -> str:
    """Submit a training as the README does, with this interpreter."""
    train = [sys.executable, "-m", "cluster.train", PRESET, *settings(values)]
    words = ("job", "submit", *options, "--working-dir", ".", "--", *train)
    return ray(cluster, *words, cwd=clone, **changes)


def tracked(clone: Path) -> set[str]:
    """What git knows of."""
    words = ["git", "-C", clone, "ls-files", "-z"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True)
    return set(listed.stdout.split("\0"))


def packaged(folder: Path) -> set[str]:
    """The files of a job's package, but what Python compiles there."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in paths if "__pycache__" not in path.parts}


def wait_until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.3)


def metrics_of(cluster: JobCluster) -> str:
    """What Prometheus would read from all nodes."""
    targets = next(
        cluster.folder.glob("a/session_2*/prom_metrics_service_discovery.json")
    )
    text = ""
    for group in json.loads(targets.read_text()):
        for target in group["targets"]:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as page:
                text += page.read().decode()
    return text


def test_a_job_without_the_token_is_refused(nodes: JobCluster, clone: Path) -> None:
    said = submit(nodes, clone, SMALL, "--no-wait", RAY_AUTH_MODE="disabled")
    assert "submitted successfully" not in said
    assert "token authentication is enabled" in said


def test_a_relative_run_directory_is_refused(nodes: JobCluster, clone: Path) -> None:
    said = submit(nodes, clone, {**SMALL, "run.dir": "runs/mine"})
    assert "run.dir: expected an absolute path in a Ray job" in said
    assert "failed with exit code 2" in said


def test_a_job_on_two_nodes_is_stopped_with_its_step_saved(
    nodes: JobCluster, clone: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    values = {
        **SMALL,
        "run.dir": run_dir,
        "learner.num_steps": 500,
        "checkpoint.interval": 500,
        "rollout.num_cpus": 2,
        "learner.num_cpus": 2,
    }
    options = ("--no-wait", "--submission-id", "first")
    assert "submitted successfully" in submit(nodes, clone, values, *options)

    def log() -> str:
        return ray(nodes, "job", "logs", "first")[-3000:]

    wait_until(lambda: len(metric_lines(run_dir)) >= 2, log)
    packages = list(nodes.folder.glob("?/session_2*/runtime_resources/*/_ray_pkg_*"))
    folders = [path for path in packages if path.is_dir()]
    # One copy on every node; the policy was read from both by its relative path.
    assert len(folders) == 2
    for folder in folders:
        assert packaged(folder) <= tracked(clone)
        assert not (folder / ".git").exists()
        assert not (folder / "runs").exists() and not (folder / ".venv").exists()
    hosts = json.loads((run_dir / "workers.json").read_text())["workers"]
    sessions = {worker["log"].split("/session_")[0] for worker in hosts.values()}
    assert len(sessions) == 2
    wait_until(lambda: "sightline_step" in metrics_of(nodes), log)
    assert "SUCCEEDED" not in ray(nodes, "job", "stop", "first")
    assert "STOPPED" in ray(nodes, "job", "status", "first").upper()
    account = audit(run_dir)
    assert account.faults == []
    assert account.checkpoints == [account.num_steps]
    (ended,) = events(run_dir, "ended")
    assert ended["status"] == 143
    assert "--resume continues from the last checkpoint" in log()


@pytest.mark.long
def test_a_job_without_authentication_runs_to_its_end(
    clone: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    values = {**SMALL, "run.dir": run_dir, "learner.num_steps": 3}
    with JobCluster(with_token=False) as cluster:
        said = submit(cluster, clone, values)
    assert "succeeded" in said
    assert audit(run_dir).num_steps == 3
    assert (run_dir / "policy" / "model.safetensors").exists()
