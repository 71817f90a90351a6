"""The run directory refuses to mix runs, and finds the newest whole checkpoint."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cluster.train as train_command
from cluster.checkpoints.checksums import write_checksums
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
    """A whole state.json, apart from `changes`, and its checksum."""
    content = json.loads(RunState.fresh(num_offline=0).to_json())
    (folder / "state.json").write_text(json.dumps({**content, **changes}))
    write_checksums(folder)


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


def test_a_kept_checkpoint_keeps_the_best_that_it_names(tmp_path: Path) -> None:
    """Step 100 is the best now; when it is damaged the run goes on from 75, whose best is 25."""
    run_dir = RunDir(config(tmp_path), resume=False)
    for step, best_step in ((25, 25), (50, 25), (75, 25), (100, 100)):
        folder = run_dir.checkpoint(step)
        folder.mkdir(parents=True)
        write_state(folder, step=step, best_step=best_step)
    run_dir.keep(2, best_step=100)
    names = sorted(path.name for path in run_dir.checkpoints.iterdir())
    assert names == ["step_000025", "step_000075", "step_000100"]
    (run_dir.checkpoint(100) / "state.json").write_text("{")
    checkpoint = run_dir.latest()
    assert checkpoint is not None
    assert checkpoint.state.best_step == 25
    # A folder that cannot be read names none; it costs the others nothing.
    (run_dir.checkpoint(100)).mkdir()
    run_dir.keep(2, best_step=25)
    assert run_dir.checkpoint(25).exists()
    assert run_dir.checkpoint(75).exists()


def test_what_a_kill_left_half_is_swept(tmp_path: Path) -> None:
    run_dir = RunDir(config(tmp_path), resume=False)
    for name in (".step_000040.old", ".step_000050.partial"):
        (run_dir.checkpoints / name).mkdir(parents=True)
    assert run_dir.latest() is None
    assert list(run_dir.checkpoints.iterdir()) == []


@pytest.mark.parametrize("pickle", ["rank_0.pt", "engine/learner/states.pt"])
def test_a_checkpoint_of_an_earlier_version_is_refused(
    pickle: str, tmp_path: Path
) -> None:
    """It is a pickle, which is not opened: this one could not be."""
    run_dir = RunDir(config(tmp_path), resume=False)
    file = run_dir.checkpoint(5) / "learner" / pickle
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no pickle")
    write_state(run_dir.checkpoint(5))
    expected = r"expected learner\.json of this version, got .* of an earlier one"
    with pytest.raises(UserError, match=expected) as error:
        run_dir.latest()
    assert "\n" not in str(error.value)


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
        write_checksums(run_dir.checkpoint(5))
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
    write_checksums(run_dir.checkpoint(5))
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


# One owner.


HOLD = """
import sys, time
from cluster.checkpoints.checksums import write_checksums
from cluster.run.run_dir import RunDir
from common.config.overrides import load_config
config = load_config(None, ["--mixture.online_fraction=1", f"--run.dir={sys.argv[1]}"])
run_dir = RunDir(config, resume=False)
print("mine", flush=True)
time.sleep(60)
"""


@pytest.fixture
def live_run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the directory and has trained in it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its content and the time of its last change."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(folder))
            files[name] = (path.read_bytes(), path.stat().st_mtime_ns)
    return files


@pytest.mark.parametrize("words", [[], ["--resume"], ["--learner.num_steps=7"]])
def test_a_second_controller_is_refused_and_touches_nothing(
    words: list[str],
    live_run: subprocess.Popen[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(tmp_path)
    line = ["--mixture.online_fraction=1", f"--run.dir={tmp_path}", *words]
    assert train_command.main(line) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: run.dir: expected one owner of {tmp_path}, got")
    assert f"process {live_run.pid} on {socket.gethostname()} (since 2" in said
    assert said.count("\n") == 1
    assert contents(tmp_path) == before


def test_a_dead_owner_does_not_block(
    live_run: subprocess.Popen[str], tmp_path: Path
) -> None:
    live_run.kill()
    live_run.wait()
    # Its name still stands in the file.
    assert str(live_run.pid) in (tmp_path / ".lock").read_text()
    RunDir(config(tmp_path), resume=True).close()


def test_a_link_to_the_directory_is_the_same_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with (
        RunDir(config(tmp_path / "run"), resume=False),
        pytest.raises(UserError, match="expected one owner"),
    ):
        RunDir(config(tmp_path / "link"), resume=True)


# A start that failed.


def test_a_failed_start_refuses_no_corrected_command(tmp_path: Path) -> None:
    with RunDir(config(tmp_path), resume=False):
        (tmp_path / "journal").mkdir()
        (tmp_path / "journal" / "events.jsonl").write_text('{"event": "row"}\n')
        (tmp_path / "evaluation").mkdir()
        (tmp_path / "evaluation" / "baseline.json").write_text("of the wrong model")
        (tmp_path / "evaluation" / "mine.txt").write_text("the user's")
        (tmp_path / "metrics.jsonl").touch()
    corrected = config(tmp_path, learner__optimizer__lr=0.01)
    RunDir(corrected, resume=False).close()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["learner"]["optimizer"]["lr"] == 0.01
    assert not (tmp_path / "journal" / "events.jsonl").exists()
    assert not (tmp_path / "evaluation" / "baseline.json").exists()
    assert (tmp_path / "evaluation" / "mine.txt").exists()


def test_a_resume_of_a_failed_start_keeps_what_it_measured(tmp_path: Path) -> None:
    with RunDir(config(tmp_path), resume=False):
        (tmp_path / "evaluation").mkdir()
        (tmp_path / "evaluation" / "baseline.json").write_text("measured")
    RunDir(config(tmp_path), resume=True).close()
    assert (tmp_path / "evaluation" / "baseline.json").exists()


@pytest.mark.parametrize("trace", ["checkpoints/step_000005", "policy"])
def test_a_run_that_lost_its_metrics_is_still_a_run(trace: str, tmp_path: Path) -> None:
    with RunDir(config(tmp_path), resume=False):
        (tmp_path / trace).mkdir(parents=True)
    with pytest.raises(UserError, match="add --resume"):
        RunDir(config(tmp_path), resume=False)


def test_the_config_of_a_model_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UserError, match=r"choose another --run\.dir"):
        RunDir(config(tmp_path), resume=False)
    assert (tmp_path / "config.json").read_text() == '{"model_type": "llava"}'
