"""An evaluation that was killed goes on where it stood, and with nothing of another policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import evaluate as command
from common.protocols import GenerationRequest
from common.records import Dropped, RolloutGroup
from tests.cluster.evaluation.fake_policies import WORDS, FakePolicy, LoggingRuntime


class Killed(Exception):
    """The process is gone."""


def kill_after(num_calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the policies answer so many calls, all together."""
    calls_left = num_calls
    answer = FakePolicy.generate

    async def generate(
        self: FakePolicy, requests: list[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        nonlocal calls_left
        if calls_left == 0:
            raise Killed
        calls_left -= 1
        return await answer(self, requests)

    monkeypatch.setattr(FakePolicy, "generate", generate)


@pytest.mark.parametrize("num_calls", [1, 2, 3])
def test_a_killed_command_goes_on_and_comes_to_the_same(
    num_calls: int,
    policies: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two policies with a chunk of captions and one of questions each: killed in the first and in the second."""
    words = [str(policies / "honest"), "--baseline", str(policies / "dreamer"), *WORDS]
    whole = policies / "whole.json"
    assert command.main([*words, "--out", str(whole)]) == 0
    out = policies / "out"
    out.mkdir()
    with monkeypatch.context() as patch:
        kill_after(num_calls, patch)
        with pytest.raises(Killed):
            command.main([*words, "--out", str(out)])
    assert list((out / "scorecard.json.partial").iterdir())
    with monkeypatch.context() as patch:
        # What was answered is not asked again: the other calls are enough.
        kill_after(4 - num_calls, patch)
        # Settings that change no answer may differ.
        more = ["--rollout.num_workers", "2", "--evaluation.samples_shown", "3"]
        assert command.main([*words, *more, "--out", str(out)]) == 0
    assert (out / "scorecard.json").read_text() == whole.read_text()
    assert [path.name for path in out.iterdir()] == ["scorecard.json"]
    assert "spawn rollout/1" in LoggingRuntime.log


def test_what_another_policy_left_is_refused(
    policies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = policies / "card.json"
    kill_after(1, monkeypatch)
    with pytest.raises(Killed):
        command.main([str(policies / "honest"), *WORDS, "--out", str(out)])
    other = policies / "dreamer" / "tokenizer_config.json"
    other.write_text(other.read_text() + " ")
    for words in (["dreamer"], ["honest", "--rollout.max_tokens", "9"]):
        words = [str(policies / words[0]), *words[1:], *WORDS, "--out", str(out)]
        assert command.main(words) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert "expected what is left of an evaluation with this" in message
        assert "delete the file to begin again" in message
