"""A run's scores over prompts of one's own: who is asked, what picks the checkpoint, and what is said of harm."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster.evaluation import chunks
from cluster.placement.bundles import plan
from cluster.report import print_report
from cluster.run.crew import WorkerTypes
from cluster.run.experiment import Experiment
from cluster.run.run_dir import RunDir
from common.config import RunConfig
from common.config.overrides import load_config
from common.data.datasets import read_prompts, write_pairs, write_prompts
from common.data.image_conditions import blank_images
from common.data.images import ImageStore, read
from common.errors import UserError
from common.journal import read_events
from common.protocols import GenerationRequest
from common.records import (
    Completion,
    Dropped,
    PreferencePair,
    Response,
    RolloutGroup,
    Verdict,
)
from common.shapes.prompts import caption_prompts
from reward.suites.scorecard import Scorecard
from reward.worker import RewardWorker
from tests.cluster.runs import killed_at
from tests.fakes.learner import FakeLearner
from tests.fakes.rollout import FakeRolloutWorker
from tests.fakes.runtime import LocalRuntime
from tests.tiny_models import tiny_llava

WRONG = "There is a green ring at the top. There is a green ring at the bottom."


class Student(FakeRolloutWorker):
    """Describes a picture rightly with the weights in `good`: the number of pairs that were trained on."""

    good: ClassVar[set[float]] = set()
    # (worker, weight) of every greedy request.
    asked: ClassVar[list[tuple[int, float]]] = []

    def __init__(
        self, config: RunConfig, index: int, model_path: str | None = None
    ) -> None:
        super().__init__(config, index, model_path)
        self._index = index
        self._weight = 0.0
        if model_path is not None:
            exported = json.loads((Path(model_path) / "config.json").read_text())
            self._weight = exported["weight"]

    async def load(self, manifest: Any, tensors: Any) -> Any:
        self._weight = float(tensors["bias"][0])
        return await super().load(manifest, tensors)

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        if requests[0].temperature > 0:
            return await super().generate(list(requests))
        # Time for another worker to take the next chunk.
        await asyncio.sleep(0.01)
        self.asked.extend([(self._index, self._weight)] * len(requests))
        groups: list[RolloutGroup | Dropped] = []
        for request in requests:
            right = self._weight in self.good
            text = request.prompt.reference or "" if right else WRONG
            answer = Completion((2,), text, 0, 0, "stop")
            groups.append(RolloutGroup(request.id, request.prompt, (1,), 0, (answer,)))
        return groups


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Student, "asked", [])
    monkeypatch.setattr(chunks, "CHUNK", 2)


def prompt_set(folder: Path, split: str, count: int) -> Path:
    store = ImageStore(folder / f"{split}-images")
    prompts = caption_prompts(split, count, 0, store)
    write_prompts(folder / split, prompts)
    return folder / split


def make_config(tmp_path: Path, *words: str) -> RunConfig:
    """Checkpoints at steps 2 and 4, after 4 and 8 pairs."""
    values = {
        "run.dir": tmp_path / "run",
        "model.path": tiny_llava(),
        "data.prompts.kind": "file",
        "data.prompts.path": prompt_set(tmp_path, "train", 12),
        "data.validation": prompt_set(tmp_path, "validation", 6),
        "data.test": prompt_set(tmp_path, "test", 8),
        "rollout.num_workers": 2,
        "weights.transport": "object_store",
        "learner.num_steps": 4,
        "learner.global_batch": 2,
        "mixture.online_fraction": 1,
        "checkpoint.interval": 2,
        "evaluation.suites": '["prompts"]',
        "evaluation.bootstrap_samples": 50,
    }
    settings = [f"--{key}={value}" for key, value in values.items()]
    return load_config(None, [*settings, *words])


def run(
    config: RunConfig,
    resume: bool = False,
    judge: type = RewardWorker,
    learner: type = FakeLearner,
    rollout: type = Student,
) -> Path:
    types = WorkerTypes(rollout, judge, learner)
    with RunDir(config, resume) as run_dir:
        experiment = Experiment(config, run_dir, LocalRuntime(), plan(config), types)
        asyncio.run(asyncio.wait_for(experiment.run(), 60))
    return run_dir.path


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    journal = read_events(run_dir / "journal" / "events.jsonl")
    return [event for event in journal if event["event"] == kind]


def cards(run_dir: Path) -> tuple[Scorecard, Scorecard]:
    content = json.loads((run_dir / "scorecard.json").read_text())
    start, final = (content[name] for name in ("baseline", "final"))
    return Scorecard.model_validate(start), Scorecard.model_validate(final)


def test_win_rate_picks_the_earlier_of_equal_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Student, "good", {4, 8})
    run_dir = run(make_config(tmp_path, "--evaluation.select=prompts.win_rate"))
    validations = events(run_dir, "validation")
    assert [(event["step"], event["win_rate"]) for event in validations] == [
        (2, 1.0),
        (4, 1.0),
    ]
    (picked,) = events(run_dir, "picked")
    assert (picked["step"], picked["by"]) == (2, "validation")
    start, final = cards(run_dir)
    before, after = start.suites["prompts"], final.suites["prompts"]
    assert (before.value("win_rate"), after.value("win_rate")) == (0.5, 1.0)
    # Both scores come from the one comparison.
    start_score, score = before.value("judge_score"), after.value("judge_score")
    assert start_score is not None and score is not None and start_score < score
    assert after.changes["judge_score"].value == pytest.approx(score - start_score)
    assert after.changes["win_rate"].verdict == "better"
    assert final.harm is None
    # Test and validation of the start policy, validation twice, test of the final policy: by both workers.
    weights = [weight for _, weight in Student.asked]
    assert weights == [0] * (8 + 6) + [4] * 6 + [8] * 6 + [4] * 8
    assert {index for index, weight in Student.asked if weight == 0} == {0, 1}
    assert {index for index, weight in Student.asked[-8:]} == {0, 1}


def test_a_resume_does_not_ask_the_start_policy_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Student, "good", {8})
    config = make_config(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(4))
    kept = (tmp_path / "run" / "evaluation" / "validation_baseline.json").read_bytes()
    Student.asked.clear()
    run_dir = run(config, resume=True)
    assert 0 not in {weight for _, weight in Student.asked}
    kept_file = run_dir / "evaluation" / "validation_baseline.json"
    assert kept_file.read_bytes() == kept
    (picked,) = events(run_dir, "picked")
    assert picked["step"] == 4
    assert cards(run_dir)[1].suites["prompts"].value("win_rate") == 1.0


def test_a_policy_that_got_worse_is_called_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Student, "good", {0})
    run_dir = run(make_config(tmp_path))
    start, final = cards(run_dir)
    assert start.harm is None
    assert final.harm is not None
    assert "prompts.win_rate" in final.harm.worse
    assert final.harm.better_policy == "start"
    line = "WORSE than the start policy: prompts.win_rate -0.500 (-0.500 – -0.500)"
    better = "the start policy is the better one"
    assert line in caplog.text and better in caplog.text
    page = (run_dir / "samples.html").read_text()
    assert line in page and better in page
    # policy/ is still what validation picked.
    (picked,) = events(run_dir, "picked")
    assert picked["step"] == 2
    checkpoint = run_dir / "checkpoints" / "step_000002" / "policy" / "config.json"
    assert (run_dir / "policy" / "config.json").read_text() == checkpoint.read_text()
    capsys.readouterr()
    print_report(run_dir)
    printed = capsys.readouterr().out
    assert f"final: {line}" in printed and better in printed


class BrokenComparison(RewardWorker):
    """Ranks what is sampled, and fails on every answer that is evaluated."""

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        if groups[0].id.startswith("evaluation/"):
            raise KeyError("label")
        return await super().judge(groups)


def test_a_judge_that_fails_costs_no_scorecard(tmp_path: Path) -> None:
    run_dir = run(make_config(tmp_path), judge=BrokenComparison)
    _, final = cards(run_dir)
    suite_card = final.suites["prompts"]
    assert suite_card.value("win_rate") is None
    assert suite_card.value("mean_length") == 16
    assert suite_card.dropped == {"judge_failed": 8}
    assert "'label'" in suite_card.missing["win_rate"]
    # Nothing was measured that could pick.
    (picked,) = events(run_dir, "picked")
    assert (picked["step"], picked["by"]) == (4, "last")


def test_a_metric_that_lies_lower_is_better_picks_the_lowest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Student, "good", {8})
    suites = '["prompts", { kind = "shapes", validation_scenes = 3, test_scenes = 3 }]'
    words = [f"--evaluation.suites={suites}", "--evaluation.select=chair_i"]
    run_dir = run(make_config(tmp_path, *words))
    scores = [event["score"] for event in events(run_dir, "checkpoint")]
    assert scores[0] > scores[1] == 0
    (picked,) = events(run_dir, "picked")
    assert picked["step"] == 4
    assert [event["suite"] for event in events(run_dir, "validation")] == ["shapes"] * 2
    # No comparison picks, so the start policy is asked the test split alone.
    assert not (run_dir / "evaluation" / "validation_baseline.json").exists()


def test_a_select_that_nothing_measures_is_refused_before_the_run(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"evaluation\.select: expected a metric of"):
        run(make_config(tmp_path, "--evaluation.select=pope_f1"))
    assert Student.asked == []


class Looking(Student):
    """Names the mean brightness of the picture."""

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        groups = await super().generate(requests)
        if requests[0].temperature > 0:
            return groups
        looked: list[RolloutGroup | Dropped] = []
        for group in groups:
            assert isinstance(group, RolloutGroup)
            picture = read(group.prompt.images[0]).convert("L").resize((1, 1))
            text = f"brightness {picture.getpixel((0, 0))}"
            answer = Completion((2,), text, 0, 0, "stop")
            looked.append(RolloutGroup(group.id, group.prompt, (1,), 0, (answer,)))
        return looked


def held_out_pairs(folder: Path) -> Path:
    pairs: list[PreferencePair] = []
    for prompt in caption_prompts("test", 5, 0, ImageStore(folder / "pair-images")):
        chosen, rejected = Response(prompt.reference or ""), Response(WRONG)
        pairs.append(PreferencePair(prompt.id, prompt, chosen, rejected, "held"))
    write_pairs(folder / "held", pairs)
    return folder / "held"


def blank(folder: Path, target: Path) -> None:
    """The test prompts of a folder over grey pictures."""
    store = ImageStore(target.parent / "grey")
    change = blank_images(store)
    prompts = []
    for prompt in read_prompts(folder):
        pair = PreferencePair(prompt.id, prompt, Response(""), Response(""), "x")
        grey = change(pair)
        assert grey is not None
        prompts.append(grey.prompt)
    write_prompts(target, prompts)


def test_the_pictures_of_prompts_and_pairs_reach_the_policy(tmp_path: Path) -> None:
    """Grey pictures change every answer; log-probs of pairs are of the picture as well (see `fake_logprobs`)."""
    pairs = held_out_pairs(tmp_path)
    suites = f'["prompts", {{ kind = "preference", test = "{pairs}" }}]'
    words = [f"--evaluation.suites={suites}"]
    seeing = run(make_config(tmp_path / "seeing", *words), rollout=Looking)
    blank(tmp_path / "seeing" / "test", tmp_path / "blank")
    words.append(f"--data.test={tmp_path / 'blank'}")
    blind = run(make_config(tmp_path / "blind", *words), rollout=Looking)
    seen, unseen = texts_of(seeing), texts_of(blind)
    assert len(seen) == 8
    assert unseen == ["brightness 127"] * 8
    assert "brightness 127" not in seen
    answers = json.loads((seeing / "evaluation" / "final.json").read_text())["answers"]
    assert len(answers["suites"]["preference"]["logps"]) == 5
    for pair_id, logps in answers["grounding"]["true"].items():
        assert logps != answers["grounding"]["blank"][pair_id]


def texts_of(run_dir: Path) -> list[str]:
    """What the final policy answered."""
    content = json.loads((run_dir / "evaluation" / "final.json").read_text())
    groups = content["answers"]["suites"]["prompts"]["tasks"]["answers"]
    return [group["completions"][0]["text"] for group in groups]
