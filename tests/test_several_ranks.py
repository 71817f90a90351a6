"""A run whose learner is two Ray actors under ZeRO-2: trained, pushed to the engine, killed and resumed; real parts."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.datasets import write_pairs
from common.images import ImageStore
from common.journal import read_events
from common.records import PreferencePair, Response
from common.shapes.prompts import caption_prompts
from tests.test_end_to_end import ROOT, command, steps, wait_for

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.chaos]

STEPS = 4


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Offline pairs alone, so that the engine only takes weights and is scored; two runs, each ended by a kill."""
    folder = tmp_path_factory.mktemp("several_ranks")
    prompts = caption_prompts("train", 8, 5, ImageStore(folder / "images"))
    nothing = Response("There is nothing.")
    write_pairs(
        folder / "pairs",
        [
            PreferencePair(p.id, p, Response(p.reference or ""), nothing, "bdhs")
            for p in prompts
        ],
    )
    run_dir = folder / "run"
    words = command(
        "cluster.train",
        "cluster/configs/shapes_offline.toml",
        "--resume",
        "--run.dir",
        run_dir,
    )
    settings = {
        "data.offline.path": folder / "pairs",
        "data.prompts.count": 4,
        "checkpoint.interval": 2,
    }
    settings |= {
        "learner.num_ranks": 2,
        "learner.zero_stage": 2,
        "learner.num_cpus": 0.5,
    }
    settings |= {
        "learner.num_steps": STEPS,
        "learner.global_batch": 4,
        "learner.micro_batch": 2,
    }
    settings |= {
        "evaluation.suites.0.test_scenes": 1,
        "evaluation.suites.0.validation_scenes": 1,
        "evaluation.grounding_pairs": 0,
    }
    words += [
        word for key, value in settings.items() for word in (f"--{key}", str(value))
    ]
    for step in (2, STEPS):
        run_until(
            (run_dir / "checkpoints" / f"step_{step:06d}").exists,
            words,
            folder / f"until_{step}.log",
        )
    return run_dir


def run_until(condition: Callable[[], bool], words: list[str], log: Path) -> None:
    """Start a run and kill it without warning as soon as the condition holds."""
    with log.open("w") as file:
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=file, stderr=file, start_new_session=True
        )
        assert wait_for(lambda: condition() or process.poll() is not None, 400), (
            "not there in time"
        )
        assert condition(), log.read_text()[-3000:]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [
        event
        for event in read_events(run_dir / "journal" / "events.jsonl")
        if event["event"] == kind
    ]


def test_both_ranks_train_every_step(run_dir: Path) -> None:
    for start in events(run_dir, "start"):
        assert [worker["world_size"] for worker in start["workers"][:2]] == [2, 2]
    lines = steps(run_dir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(line["pairs/trained"] == 4 and line["grad_norm"] > 0 for line in lines)
    assert (
        lines[-1]["rewards/margins"]
        > lines[0]["rewards/margins"]
        == pytest.approx(0, abs=1e-4)
    )


def test_what_both_ranks_hold_is_what_the_engine_gets(run_dir: Path) -> None:
    published = events(run_dir, "publish")
    assert all(max(event["probe_error"]) < 1e-3 for event in published)
    norms = [event["change_norm"] for event in published]
    assert norms == sorted(norms) and norms[0] > 0


def test_a_resume_goes_on_with_the_weights_of_both_ranks(run_dir: Path) -> None:
    assert len(events(run_dir, "resume")) == 1
    first_of_resumed = events(run_dir, "start")[1]["time"]
    before, after = [], []
    for event in events(run_dir, "publish"):
        (before if event["time"] < first_of_resumed else after).append(
            (event["version"], event["checksum"])
        )
    assert before[1] == after[0]
    assert [version for version, _ in after] == [2, 3, 4]
    assert len({checksum for _, checksum in after}) == 3
