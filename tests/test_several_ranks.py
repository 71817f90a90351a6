"""A run whose learner is two Ray actors under ZeRO-2: trained, pushed to the engine, killed and resumed; real parts."""

from pathlib import Path

import pytest

from cluster.run.auditing import audit
from common.data.datasets import write_pairs
from common.data.images import ImageStore
from common.records import PreferencePair, Response
from common.shapes.prompts import caption_prompts
from tests.real_runs import (
    command,
    end_when,
    events,
    kill_when,
    metric_lines,
    pickles_in,
    settings,
)

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.chaos]

STEPS = 12
"""Many more than a run makes between its first step and the moment at which it hears that it is to end."""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Offline pairs alone, so that the engine only takes weights and is scored.

    Two runs: the first is asked to end after its first step, the second is killed after its last one.
    """
    folder = tmp_path_factory.mktemp("several_ranks")
    write_offline_pairs(folder)
    run_dir = folder / "run"
    values = {
        "run.dir": run_dir,
        "data.offline.path": folder / "pairs",
        "data.prompts.count": 4,
        "checkpoint.interval": 2,
        # Written beside the steps, it would be there when the last of them is done.
        "checkpoint.background": "false",
        "learner.num_ranks": 2,
        "learner.zero_stage": 2,
        "learner.num_cpus": 0.5,
        "learner.num_steps": STEPS,
        "learner.global_batch": 4,
        "learner.micro_batch": 2,
        "evaluation.suites.0.test_scenes": 1,
        "evaluation.suites.0.validation_scenes": 1,
        "evaluation.grounding_pairs": 0,
    }
    preset = "cluster/configs/shapes_offline.toml"
    words = command("cluster.train", preset, "--resume", *settings(values))
    checkpoints = run_dir / "checkpoints"
    log = folder / "first.log"
    assert end_when(lambda: metric_lines(run_dir) != [], words, log) == 143
    # One line, and no stack of native frames.
    assert log.read_text().splitlines()[-1].startswith("interrupted; --resume")
    assert "Traceback" not in log.read_text()
    assert "SIGTERM received" not in log.read_text()
    last = checkpoints / f"step_{STEPS:06d}"
    kill_when(last.exists, words, folder / "second.log")
    return run_dir


def write_offline_pairs(folder: Path) -> None:
    rejected = Response("There is nothing.")
    pairs = []
    for prompt in caption_prompts("train", 8, 5, ImageStore(folder / "images")):
        chosen = Response(prompt.reference or "")
        pairs.append(PreferencePair(prompt.id, prompt, chosen, rejected, "bdhs"))
    write_pairs(folder / "pairs", pairs)


def test_both_ranks_train_every_step(run_dir: Path) -> None:
    for start in events(run_dir, "start"):
        ranks = start["workers"][:2]
        assert [rank["world_size"] for rank in ranks] == [2, 2]
    lines = metric_lines(run_dir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert line["pairs/trained"] == 4
        assert line["grad_norm"] > 0
    first_margin = lines[0]["rewards/margins"]
    assert first_margin == pytest.approx(0, abs=1e-4)
    assert lines[-1]["rewards/margins"] > first_margin


def test_nothing_in_a_run_directory_is_pickled(run_dir: Path) -> None:
    (newest,) = (run_dir / "checkpoints").glob(f"step_{STEPS:06d}")
    assert (newest / "learner" / "learner.json").exists()
    assert pickles_in(run_dir) == []


def test_the_account_of_the_run_is_right(run_dir: Path) -> None:
    assert audit(run_dir).faults == []


def test_what_both_ranks_hold_is_what_the_engine_gets(run_dir: Path) -> None:
    published = events(run_dir, "publish")
    for event in published:
        assert max(event["probe_error"]) < 1e-3
    norms = [event["change_norm"] for event in published]
    assert norms == sorted(norms)
    assert norms[0] > 0


def test_a_resume_goes_on_with_the_weights_of_both_ranks(run_dir: Path) -> None:
    assert len(events(run_dir, "resume")) == 1
    _, second_start = events(run_dir, "start")
    before, after = [], []
    for event in events(run_dir, "publish"):
        published = (event["version"], event["checksum"])
        is_before = event["time"] < second_start["time"]
        (before if is_before else after).append(published)
    # A resume first publishes the checkpoint's own weights again.
    assert before[-1] == after[0]
    first_version = before[-1][0]
    assert 1 <= first_version < STEPS
    versions = [version for version, _ in after]
    assert versions == list(range(first_version, STEPS + 1))
    assert len({checksum for _, checksum in after}) == len(after)
