"""The command of an evaluation when something fails: a judge, a worker, a policy, a word on its line."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster import evaluate as command
from common.chat import ChatEncoder
from common.checkpoint.files import tensor_shapes
from common.config import SHAPES_POLICY, RunConfig
from common.records import Dropped, RolloutGroup, Verdict
from reward.suites.scorecard import Scorecard
from reward.worker import RewardWorker
from tests.cluster.evaluation.fake_policies import (
    SHAPES,
    WORDS,
    FakePolicy,
    FakeWorker,
    LoggingRuntime,
)


class BrokenJudge(RewardWorker):
    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        if not groups:
            return []
        raise ZeroDivisionError("division by zero\nin my judge")


def test_a_judge_that_raises_costs_the_win_rate_and_not_the_scorecard(
    policies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("reward.worker.RewardWorker", BrokenJudge)
    words = [str(policies / "honest"), "--baseline", str(policies / "dreamer"), *WORDS]
    out = policies / "card.json"
    assert command.main([*words, "--out", str(out)]) == 0
    card = Scorecard.model_validate(json.loads(out.read_text())["policy"])
    suite_card = card.suites["shapes"]
    assert suite_card.value("chair_s") == 0
    assert suite_card.value("win_rate") is None
    assert suite_card.dropped == {"judge_failed": 5}
    reason = suite_card.missing["win_rate"]
    assert reason.startswith("nothing could be compared; dropped {'judge_failed': 5}")
    assert "division by zero" in reason
    assert f"policy: shapes.win_rate not measured: {reason}" in capsys.readouterr().out


def test_a_failing_policy_still_stops_the_runtime(
    policies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: object) -> None:
        raise RuntimeError("no engine")

    monkeypatch.setattr(FakeWorker, "start", broken)
    with pytest.raises(RuntimeError, match="no engine"):
        command.main([str(policies / "honest"), "--scenes", "2", *SHAPES])
    assert LoggingRuntime.log == ["spawn rollout/0", "stop", "shutdown"]


async def hang(*_: object) -> None:
    await asyncio.sleep(1000)


@pytest.mark.parametrize(
    ("worker", "method", "peer"),
    [
        (FakeWorker, "start", "rollout worker"),
        (FakePolicy, "generate", "rollout worker"),
        (FakePolicy, "score", "rollout worker"),
    ],
)
def test_a_worker_that_never_answers_ends_the_command(
    worker: type,
    method: str,
    peer: str,
    policies: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(worker, method, hang)
    words = [str(policies / "honest"), "--baseline", str(policies / "dreamer")]
    words += ["--scenes", "2", *SHAPES, "--loop.call_timeout_s", "0.5"]
    assert command.main(words) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"error: {peer}: got no answer within 0.5 s")
    assert LoggingRuntime.log[-1] == "shutdown"


def test_a_judge_that_never_answers_costs_the_win_rate_alone(
    policies: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(RewardWorker, "judge", hang)
    words = [str(policies / "honest"), "--baseline", str(policies / "dreamer")]
    words += ["--scenes", "2", *SHAPES, "--loop.call_timeout_s", "0.5"]
    assert command.main(words) == 0
    table = capsys.readouterr().out
    assert "CHAIR_s" in table
    # Of the start policy alone, against itself.
    assert re.search(r"^win rate .*0\.500 .* –  +higher", table, re.MULTILINE)
    assert "policy: not counted {'judge_failed': 2}" in table
    assert "reward worker: got no answer within 0.5 s" in caplog.text
    assert LoggingRuntime.log[-1] == "shutdown"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "expected a Hugging Face model directory"),
        (
            ["{honest}", "--baseline", "nowhere"],
            "expected a Hugging Face model directory",
        ),
        (["{honest}", *SHAPES, "--scenes", "0"], "expected at least 1, got 0"),
        (["{honest}"], "expected suites with prompts of the test split"),
        (
            ["{honest}", *SHAPES, "--evaluation.suites.0.test_scenes", "0"],
            "expected suites with prompts of the test split",
        ),
        (
            ["{honest}", *SHAPES, "--evaluation.suites.0.test_scene", "5"],
            "did you mean evaluation.suites.",
        ),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str], message: str, policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    honest_policy = str(policies / "honest")
    filled_in = [word.replace("{honest}", honest_policy) for word in words]
    assert command.main(filled_in) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert "\n" not in printed


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "config.json",
            b"{broken",
            "expected config and processor that transformers can load",
        ),
        (
            "config.json",
            b"\xff\xfe",
            "expected config and processor that transformers can load",
        ),
        (
            "tokenizer.json",
            b"{",
            "expected config and processor that transformers can load",
        ),
        ("model.safetensors", b"cut off", "expected readable safetensors"),
    ],
)
def test_a_broken_policy_is_one_line(
    name: str,
    content: bytes,
    message: str,
    policies: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As an engine reads it: no learner looks at the checkpoint first."""
    path = Path(shutil.copytree(SHAPES_POLICY, policies / "policy"))
    (path / name).write_bytes(content)

    class Reader(FakeWorker):
        def __init__(self, config: RunConfig, index: int, model_path: str) -> None:
            ChatEncoder(model_path, 100)
            tensor_shapes(model_path)

    monkeypatch.setattr(sys.modules["actors.rollout"], "RolloutWorker", Reader)
    assert command.main([str(path), "--scenes", "2", *SHAPES]) == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith(f"error: model.path {path}")
    assert message in printed
