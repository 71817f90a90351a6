"""The run directory refuses to mix runs, and finds the newest whole checkpoint."""

import json
from pathlib import Path

import pytest

from cluster.run.run_dir import RunDir
from cluster.run.state import RunState
from common.config import RunConfig
from common.config.overrides import load_config
from common.errors import UserError
from common.paths import recover_directory, replace_directory


def config(path: Path, **changes: object) -> RunConfig:
    words = [f"--{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return load_config(
        None, ["--mixture.online_fraction=1", f"--run.dir={path}", *words]
    )


def write_state(folder: Path, **changes: object) -> None:
    """A whole state.json, apart from `changes`."""
    content = json.loads(RunState.fresh(num_offline=0).to_json())
    (folder / "state.json").write_text(json.dumps({**content, **changes}))


def train(run_dir: RunDir) -> None:
    """Leave what the first step of a run leaves."""
    (run_dir.path / "metrics.jsonl").write_text('{"step": 1}\n')


def test_a_second_run_needs_resume(tmp_path: Path) -> None:
    with RunDir(config(tmp_path), resume=False) as run_dir:
        train(run_dir)
    with pytest.raises(UserError, match="add --resume"):
        RunDir(config(tmp_path), resume=False)
    assert RunDir(config(tmp_path), resume=True).latest() is None


def test_another_config_is_refused_and_named(tmp_path: Path) -> None:
    with RunDir(config(tmp_path), resume=False) as run_dir:
        train(run_dir)
    with pytest.raises(
        UserError, match=r"learner\.optimizer\.lr is 1e-06 there, 0\.01 here\); choose"
    ):
        RunDir(config(tmp_path, learner__optimizer__lr=0.01), resume=True)


def test_latest_and_keep(tmp_path: Path) -> None:
    run_dir = RunDir(config(tmp_path), resume=False)
    for step in (10, 20, 30, 40):
        folder = run_dir.checkpoint(step)
        folder.mkdir(parents=True)
        write_state(folder, step=step)
    (run_dir.checkpoints / ".step_000050.partial").mkdir()
    run_dir.keep(2, best_step=10)
    names = sorted(path.name for path in run_dir.checkpoints.glob("step_*"))
    assert names == ["step_000010", "step_000030", "step_000040"]
    checkpoint = run_dir.latest()
    assert checkpoint is not None
    assert checkpoint.state.step == 40
    assert checkpoint.learner == run_dir.checkpoint(40) / "learner"


@pytest.mark.parametrize(
    "content", [b'{"step": 5', b'{"version": 5}', b"[5]", b"\xff\xfe", None]
)
def test_a_corrupt_checkpoint_is_one_line(
    content: bytes | None, tmp_path: Path
) -> None:
    run_dir = RunDir(config(tmp_path), resume=False)
    run_dir.checkpoint(5).mkdir(parents=True)
    if content is not None:
        (run_dir.checkpoint(5) / "state.json").write_bytes(content)
    with pytest.raises(UserError, match="delete its folder") as error:
        run_dir.latest()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"buffer": None}, r"one with a wrong 'buffer' \("),
        ({"stepp": 5}, r"one with a wrong 'stepp' \("),
        ({"step": "five"}, r"one with a wrong 'step' \("),
    ],
)
def test_a_state_of_another_shape_is_corrupt_too(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    run_dir = RunDir(config(tmp_path), resume=False)
    run_dir.checkpoint(5).mkdir(parents=True)
    write_state(run_dir.checkpoint(5), **change)
    with pytest.raises(UserError, match=message) as error:
        run_dir.latest()
    assert "\n" not in str(error.value)


def test_a_state_that_lacks_a_part_is_corrupt_too(tmp_path: Path) -> None:
    run_dir = RunDir(config(tmp_path), resume=False)
    run_dir.checkpoint(5).mkdir(parents=True)
    (run_dir.checkpoint(5) / "state.json").write_text('{"step": 5}')
    with pytest.raises(UserError, match=r"state\.json: .*'buffer'.*delete its folder"):
        run_dir.latest()


def test_a_config_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(
        UserError, match=r"config\.json: expected a readable JSON object"
    ):
        RunDir(config(tmp_path), resume=True)


def test_directories_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with replace_directory(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), replace_directory(target) as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    target.rename(tmp_path / ".target.old")
    recover_directory(target)
    assert (target / "a").read_text() == "old"
