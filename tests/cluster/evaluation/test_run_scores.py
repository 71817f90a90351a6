"""What a run says and does about its scores, above all when no suite measures it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.placement.bundles import plan
from cluster.report import print_report
from cluster.run.crew import WorkerTypes
from cluster.run.experiment import Experiment
from cluster.run.run_dir import RunDir
from common.config import RunConfig
from common.config.overrides import load_config
from common.data.datasets import write_pairs, write_prompts
from common.data.images import ImageStore
from common.errors import UserError
from common.journal import read_events
from common.metrics import read_lines
from common.protocols import GenerationRequest
from common.records import Dropped, PreferencePair, Response, RolloutGroup
from common.shapes.prompts import caption_prompts
from reward.worker import RewardWorker
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker
from tests.fakes.runtime import LocalRuntime
from tests.tiny_models import tiny_llava


def other_pictures(folder: Path) -> Path:
    """A prompt set on disk, as any user has it; that its pictures are rendered does not matter to a run."""
    prompts = caption_prompts("train", 12, 0, ImageStore(folder / "images"))
    write_prompts(folder / "prompts", prompts)
    return folder / "prompts"


def make_config(tmp_path: Path, *words: str) -> RunConfig:
    values = {
        "run.dir": tmp_path / "run",
        "model.path": tiny_llava(),
        "data.prompts.kind": "file",
        "data.prompts.path": other_pictures(tmp_path),
        "learner.num_steps": 4,
        "learner.global_batch": 2,
        "mixture.online_fraction": 1,
        "checkpoint.interval": 2,
        "evaluation.bootstrap_samples": 20,
    }
    settings = [f"--{key}={value}" for key, value in values.items()]
    return load_config(None, [*settings, *words])


def run(config: RunConfig, rollout: type = FakeRolloutWorker) -> Path:
    run_dir = RunDir(config, resume=False)
    types = WorkerTypes(rollout, RewardWorker, FakeLearner)
    experiment = Experiment(config, run_dir, LocalRuntime(), plan(config), types)
    asyncio.run(asyncio.wait_for(experiment.run(), 60))
    return run_dir.path


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    journal = read_events(run_dir / "journal" / "events.jsonl")
    return [event for event in journal if event["event"] == kind]


class NeverGreedy(FakeRolloutWorker):
    """Refuses to be evaluated: answers greedily to nothing."""

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        assert requests[0].temperature > 0, "nothing is to be evaluated"
        return await super().generate(requests)


def test_a_run_without_suites_takes_the_last_checkpoint_and_says_so(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = run(make_config(tmp_path), NeverGreedy)
    at_start, at_end = [line for line in caplog.messages if " last " in line]
    assert "no validation prompts" in at_start
    assert at_end.startswith("the policy is the last checkpoint (step 4)")
    assert [event["picks"] for event in events(run_dir, "no_validation")] == ["last"]
    (picked,) = events(run_dir, "picked")
    assert picked["step"] == 4
    assert picked["by"] == "last"

    # No number is invented: neither a score of a checkpoint nor a scorecard.
    assert events(run_dir, "validation") == []
    assert [event["score"] for event in events(run_dir, "checkpoint")] == [None, None]
    for line in read_lines(run_dir / "metrics.jsonl"):
        assert "validation/score" not in line
    cards = json.loads((run_dir / "scorecard.json").read_text())
    for card in cards.values():
        assert card["suites"] == {}
        assert card["grounding"]["gain"] is None
    assert not (run_dir / "samples.html").exists()
    last = run_dir / "checkpoints" / "step_000004" / "policy" / "config.json"
    picked_policy = run_dir / "policy" / "config.json"
    assert picked_policy.read_bytes() == last.read_bytes()

    print_report(run_dir)
    printed = capsys.readouterr().out
    assert "evaluation.suites is empty" in printed
    assert "CHAIR" not in printed


def test_held_out_pairs_alone_pass_the_grounding_gate(tmp_path: Path) -> None:
    pairs: list[PreferencePair] = []
    for prompt in caption_prompts("test", 4, 0, ImageStore(tmp_path / "held-images")):
        pair = PreferencePair(
            id=prompt.id,
            prompt=prompt,
            chosen=Response(prompt.reference or ""),
            rejected=Response("There is nothing."),
            source="held-out",
        )
        pairs.append(pair)
    write_pairs(tmp_path / "held", pairs)
    run_dir = run(make_config(tmp_path, f"--evaluation.pairs={tmp_path / 'held'}"))
    cards = json.loads((run_dir / "scorecard.json").read_text())
    assert cards["final"]["grounding"]["num_pairs"] == 4


def test_a_suite_of_another_world_is_measured_when_the_config_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    suites = '[{ kind = "shapes", validation_scenes = 2, test_scenes = 2 }]'
    run_dir = run(make_config(tmp_path, f"--evaluation.suites={suites}"))
    assert "last checkpoint" not in caplog.text
    validations = events(run_dir, "validation")
    assert [event["step"] for event in validations] == [2, 4]
    for event in validations:
        assert event["suite"] == "shapes"
        assert event["num_captions"] == 2
        assert {"chair_s", "chair_i", "recall", "selection"} <= set(event)
    (picked,) = events(run_dir, "picked")
    assert picked["by"] == "validation"
    assert (run_dir / "samples.html").exists()


def test_a_suite_without_validation_prompts_picks_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    suites = '[{ kind = "shapes", validation_scenes = 0, test_scenes = 2 }]'
    run_dir = run(make_config(tmp_path, f"--evaluation.suites={suites}"))
    assert "no validation prompts" in caplog.text
    (picked,) = events(run_dir, "picked")
    assert (picked["step"], picked["by"]) == (4, "last")
    cards = json.loads((run_dir / "scorecard.json").read_text())
    assert cards["final"]["suites"]["shapes"]["counts"]["num_captions"] == 2


@pytest.mark.parametrize("content", ["{", "{}", '{"baseline": {"chair_s": 0.5}}'])
def test_a_scorecard_that_cannot_be_read_is_one_line(
    content: str, tmp_path: Path
) -> None:
    (tmp_path / "scorecard.json").write_text(content)
    with pytest.raises(UserError, match=r"expected the scorecard of a .*resume") as got:
        print_report(tmp_path)
    assert "\n" not in str(got.value)
