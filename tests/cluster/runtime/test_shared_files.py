"""A folder that a worker does not see is named before the run writes half of anything."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cluster.run.run_dir import RunDir
from cluster.runtime.ray_job import JOB_VARIABLE, check_output_path
from cluster.runtime.seated import Seated, look, seated
from cluster.runtime.shared_files import NONCE, SharedFiles
from common.errors import UserError
from common.protocols import Sight
from tests.cluster.runs import make_config, run
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker
from tests.fakes.runtime import LocalHandle, LocalRuntime


class Elsewhere(Seated):
    """A worker on another machine, where the run's folder stands at another place."""

    def __init__(self, folder: Path, here: Path) -> None:
        self._folder = folder
        self._here = here

    def survey(self, nonce_file: str, paths: Any) -> Sight:
        seen = str(Path(nonce_file)).replace(str(self._folder), str(self._here))
        return super().survey(seen, paths)


def check(files: SharedFiles, worker: Any, name: str = "learner/1") -> None:
    asyncio.run(files.check({name: LocalHandle(worker)}, 5.0))


def test_every_worker_reads_the_nonce(tmp_path: Path) -> None:
    worker = seated(dict, ".")()
    check(SharedFiles("run.dir", tmp_path, {str(tmp_path): "data"}), worker)
    # Nothing is left behind.
    assert not list(tmp_path.iterdir())
    nonces = {SharedFiles("run.dir", tmp_path).nonce for _ in range(3)}
    assert len(nonces) == 3


def test_a_folder_that_is_not_shared_is_named(tmp_path: Path) -> None:
    folder, other = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    other.mkdir()
    files = SharedFiles("run.dir", folder)
    host = os.uname().nodename
    line = (
        f"run.dir: expected a folder that all nodes share, got no such file for {folder} on {host}, where learner/1 "
        "is; put it on a file system that every node has mounted there"
    )
    with pytest.raises(UserError) as error:
        check(files, Elsewhere(folder, other))
    assert str(error.value) == line
    # Of an earlier run there, whose folder has the same name.
    (other / NONCE).write_text("0" * 32)
    with pytest.raises(UserError, match="got another folder of that name for "):
        check(files, Elsewhere(folder, other))


class OtherNode(LocalRuntime):
    """A cluster whose second node does not see the run's folder."""

    def survey_nodes(self, nonce_file: str) -> dict[str, Any]:
        async def sight() -> Sight:
            return look(nonce_file + ".elsewhere", ())

        return {**super().survey_nodes(nonce_file), "learner/0": sight()}


def test_a_node_is_asked_before_anything_starts_there(tmp_path: Path) -> None:
    files = SharedFiles("run.dir", tmp_path)
    asyncio.run(files.check_nodes(LocalRuntime(), 5.0))
    with pytest.raises(UserError, match=r"got no such file .* where learner/0 is;"):
        asyncio.run(files.check_nodes(OtherNode(), 5.0))


def test_a_model_that_a_node_has_not_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Restores the folder of this process, which is the workers' as well.
    monkeypatch.chdir(tmp_path)
    files = SharedFiles(
        "run.dir",
        tmp_path,
        of_actor={
            "learner": {"models/7b": "model.path"},
            "judge/0": {"/models/34b": "reward.judge.path"},
        },
    )
    with pytest.raises(UserError) as error:
        check(files, seated(dict, str(tmp_path))())
    assert str(error.value).startswith(
        "model.path: expected every node to have models/7b, got none on "
    )
    assert f"where learner/1 is (looked for from {tmp_path})" in str(error.value)
    (tmp_path / "models" / "7b").mkdir(parents=True)
    check(files, seated(dict, str(tmp_path))())
    with pytest.raises(UserError, match=r"reward\.judge\.path: expected every node"):
        check(files, seated(dict, ".")(), "judge/0")
    check(files, seated(dict, ".")(), "judge/1")


def test_a_run_asks_all_workers_at_its_start(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    started: list[str] = []

    class FarLearner(FakeLearner):
        def survey(self, nonce_file: str, paths: Any) -> Sight:
            return Sight("node7", "/", "", None, ())

        def step(self, step: int, pairs: Any) -> Any:
            started.append("step")
            raise AssertionError

    with pytest.raises(UserError, match=r"on node7, where learner/0 is"):
        run(config, learner=FarLearner, rollout=FakeRolloutWorker)
    assert not started


def test_relative_outputs_of_a_ray_job_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_output_path(Path("out"), "--out")
    monkeypatch.setenv(JOB_VARIABLE, json.dumps({"runtime_env": {}}))
    check_output_path(tmp_path / "out", "--out")
    config = make_config(tmp_path, run__dir="runs/a")
    with pytest.raises(UserError) as error:
        RunDir(config, resume=False)
    assert str(error.value) == (
        "run.dir: expected an absolute path in a Ray job, whose working directory is deleted with it, got runs/a; "
        "give a folder that all nodes share"
    )
    assert not (tmp_path / "runs").exists()
