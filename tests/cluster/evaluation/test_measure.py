"""Measuring policies that are functions: what is asked, and what comes of the answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import pytest

from cluster.evaluation import measure as measuring
from cluster.evaluation.chunks import CHUNK
from cluster.evaluation.measure import Evaluator
from cluster.evaluation.measured import Measured, read_measured, write_measured
from cluster.progress import ProgressReport
from cluster.runtime.clients import RewardClient, RolloutClient
from common import config
from common.config import Mixture, RunConfig
from common.data.images import ImageStore
from common.evaluation import Answers, Score
from common.records import Dropped, RolloutGroup, Verdict
from reward.suites.scorecard import SuiteCard
from reward.worker import RewardWorker
from tests.cluster.evaluation.fake_policies import FakePolicy, dreamer, honest
from tests.fakes.runtime import LocalHandle

SUITE = config.ShapesSuite(test_scenes=12, validation_scenes=5)
CONFIG = RunConfig(
    mixture=Mixture(online_fraction=1),
    rollout=config.Rollout(max_tokens=40),
    evaluation=config.Evaluation(
        suites=(SUITE,), bootstrap_samples=50, grounding_pairs=0
    ),
)
LIMIT_S = 30.0


@pytest.fixture
def evaluator(tmp_path: Path) -> Evaluator:
    return Evaluator(CONFIG, ImageStore(tmp_path / "images"))


def measure(
    policy: FakePolicy,
    evaluator: Evaluator,
    baseline: Answers | None = None,
    judge: object | None = None,
) -> Measured:
    async def run() -> Measured:
        rollout = RolloutClient(LocalHandle(policy), LIMIT_S)
        reward = RewardClient(LocalHandle(judge or RewardWorker(CONFIG)), LIMIT_S)
        return await evaluator.measure("test", [rollout], [reward], baseline, "test")

    return asyncio.run(run())


def shapes_card(measured: Measured) -> SuiteCard:
    return measured.card.suites["shapes"]


def test_an_honest_policy_beats_the_dreamer(evaluator: Evaluator) -> None:
    """Scenes have at most 3 of the 6 shapes, so each dream invents at least 3; "always yes" is right half the time."""
    dreaming = measure(FakePolicy(dreamer), evaluator)
    before = shapes_card(dreaming)
    assert before.value("chair_s") == 1
    assert before.value("recall") == 1
    assert before.value("pope_accuracy") == 0.5
    assert before.value("pope_yes_ratio") == 1
    chair_i = before.value("chair_i")
    assert chair_i is not None and chair_i >= 0.5
    assert before.value("win_rate") == 0.5

    seeing = measure(FakePolicy(honest), evaluator, dreaming.answers)
    after = shapes_card(seeing)
    assert after.value("chair_s") == 0
    assert after.value("chair_i") == 0
    assert after.value("recall") == 1
    assert after.value("pope_f1") == 1
    assert after.value("win_rate") == 1
    dreaming_score = evaluator.selection.score(dreaming.card)
    assert dreaming_score is not None and dreaming_score.value < 1
    assert evaluator.selection.score(seeing.card) == Score(1.0)
    assert after.counts["num_captions"] == 12
    assert after.counts["num_questions"] == 72
    assert after.counts["num_compared"] == 12

    back = measure(FakePolicy(dreamer), evaluator, seeing.answers)
    assert shapes_card(back).value("win_rate") == 0
    same = measure(FakePolicy(honest), evaluator, seeing.answers)
    assert shapes_card(same).value("win_rate") == 0.5


class CountingReport(ProgressReport):
    advances: ClassVar[list[int]] = []

    def advance(self, note: str = "", count: int = 1) -> None:
        self.advances.append(count)
        super().advance(note, count)


def test_asks_greedily_once_and_in_chunks(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "ProgressReport", CountingReport)
    monkeypatch.setattr(CountingReport, "advances", [])
    policy = FakePolicy(honest)
    measure(policy, evaluator)
    for request in policy.requests:
        assert request.num_completions == 1
        assert request.temperature == 0.0
        assert request.max_tokens == 40
        assert request.prefix == ""
    assert policy.chunks == CountingReport.advances == [12, CHUNK, 72 - CHUNK]
    assert len({request.id for request in policy.requests}) == 84


def test_what_cannot_be_generated_or_compared_is_counted(evaluator: Evaluator) -> None:
    first, second, *_ = evaluator.prompts("test")["shapes"]["captions"]
    start = measure(FakePolicy(honest, refuses=(first.id,)), evaluator)
    policy = FakePolicy(honest, refuses=(second.id,))
    measured = measure(policy, evaluator, start.answers)
    card = shapes_card(measured)
    assert card.dropped == {"prompt_too_long": 1, "no_baseline": 1}
    assert card.counts["num_captions"] == 11
    assert card.counts["num_compared"] == 10
    dropped = measured.answers.suites["shapes"].dropped
    assert [drop.id for drop in dropped] == [f"evaluation/{second.id}"]


class SilentJudge:
    async def judge(self, groups: list[RolloutGroup]) -> list[Verdict | Dropped]:
        return [Dropped(group.id, "judge_failed") for group in groups]


def test_a_judge_without_verdicts_leaves_no_win_rate(evaluator: Evaluator) -> None:
    start = measure(FakePolicy(honest), evaluator)
    measured = measure(FakePolicy(honest), evaluator, start.answers, SilentJudge())
    card = shapes_card(measured)
    assert card.value("win_rate") is None
    assert card.dropped == {"judge_failed": 12}
    assert card.counts["num_captions"] == 12


class FirstJudge:
    """Prefers what stands first, whatever it says."""

    def __init__(self) -> None:
        self.first: dict[str, str] = {}

    async def judge(self, groups: list[RolloutGroup]) -> list[Verdict | Dropped]:
        for group in groups:
            self.first[group.prompt.id] = group.completions[0].text
        return [Verdict((1.0, 0.0), ("first", "second"))] * len(groups)


def test_a_judge_of_places_finds_no_policy_better(evaluator: Evaluator) -> None:
    """Each policy's answer stands first for some prompts, and wins these."""
    judge = FirstJudge()
    start = measure(FakePolicy(dreamer), evaluator)
    measured = measure(FakePolicy(honest), evaluator, start.answers, judge)
    groups = measured.answers.suites["shapes"].tasks["captions"]
    won = [
        group.completions[0].text == judge.first[group.prompt.id] for group in groups
    ]
    assert len(set(won)) == 2
    assert shapes_card(measured).value("win_rate") == sum(won) / len(won)


def test_validation_asks_only_what_picks_the_checkpoint(evaluator: Evaluator) -> None:
    policy = FakePolicy(honest)
    client = RolloutClient(LocalHandle(policy), LIMIT_S)
    card = asyncio.run(evaluator.validate([client], (), Answers())).card
    assert policy.chunks == [5]
    assert evaluator.selection.score(card) == Score(1.0)
    metrics = card.suites["shapes"].metrics
    assert "chair_s" in metrics
    assert not {"pope_f1", "win_rate"} & set(metrics)


def test_what_was_measured_is_read_back(evaluator: Evaluator, tmp_path: Path) -> None:
    measured = measure(FakePolicy(dreamer), evaluator)
    write_measured(tmp_path / "start.json", measured)
    assert read_measured(tmp_path / "start.json") == measured
