"""Everything that can be wrong with what a user's judge answers: it costs its group and nothing more."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from common.config import PythonJudge, RunConfig
from common.records import Dropped, Verdict
from reward.judges.factory import make_judge
from reward.worker import RewardWorker
from tests.reward.python_judge.asking import GROUP, Write, dropped, scores

BAD_SCORES = {
    "nan": "[float('nan'), 1.0]",
    "too many": "[1.0, 2.0, 3.0]",
    "one number": "1.0",
    "none": "None",
    "a none among them": "[1.0, None]",
    "words": "['good', 'bad']",
    "prose": "'The first one is better.'",
    "nothing": "[]",
    "a dict": "{'a': 1.0, 'b': 2.0}",
    "a bad verdict": "Verdict((1.0,))",
    "a table": "numpy.zeros((3, 40))",
    "an odd number": "[1.0, 1j]",
}


@pytest.mark.parametrize("value", BAD_SCORES.values(), ids=BAD_SCORES)
def test_what_is_no_score_is_dropped(write: Write, value: str) -> None:
    result = dropped(
        write(
            f"""
            import numpy
            from common.records import Verdict

            def judge(prompt, completions):
                return {value}
            """
        )
    )
    assert result.reason == "bad_verdict"
    assert "my_judge.py:judge, prompt p17: expected 2 finite scores" in result.detail


def test_a_bug_names_judge_prompt_and_line(write: Write) -> None:
    settings = write(
        """
        def judge(prompt, completions):
            return helper(completions)

        def helper(completions):
            return [{}["label"] for text in completions]
        """
    )
    result = dropped(settings)
    path = settings.target.rpartition(":")[0]
    assert result == Dropped(
        "g",
        "judge_failed",
        f"judge {settings.target}, prompt p17: KeyError: 'label' ({path}, line 5)",
    )


@pytest.mark.parametrize(
    "error", ["SystemExit(3)", "StopIteration()", "Odd()", "Mute()"]
)
def test_nothing_that_it_raises_ends_the_worker(write: Write, error: str) -> None:
    settings = write(
        f"""
        class Odd(Exception):
            def __str__(self):
                return "one\\ntwo"

        class Mute(Exception):
            def __str__(self):
                raise ValueError

        class Judge:
            def judge(self, group):
                raise {error}

        class Later:
            async def judge(self, group):
                raise {error}
        """,
        "Judge",
    )
    assert dropped(settings).reason == "judge_failed"
    later = PythonJudge(target=settings.target.replace(":Judge", ":Later"))
    assert dropped(later).reason == "judge_failed"


def test_a_result_that_breaks_when_it_is_read_is_dropped(write: Write) -> None:
    settings = write(
        """
        class Broken:
            def tolist(self):
                raise RuntimeError("the device is lost")

        def judge(prompt, completions):
            return Broken()
        """
    )
    assert "RuntimeError: the device is lost" in dropped(settings).detail
    huge = write("def judge(prompt, completions): return [10 ** 400, 1]")
    assert "OverflowError" in dropped(huge).detail


def test_a_missing_column_is_told(write: Write) -> None:
    settings = write("def judge(prompt, completions, boxes): return [1.0, 0.0]")
    assert (
        "expected a column 'boxes', which the function asks for, got answer, chosen, label"
        in (dropped(settings).detail)
    )


def test_the_network_is_tried_again(write: Write) -> None:
    settings = write(
        """
        calls = []

        def judge(prompt, completions):
            calls.append(1)
            if len(calls) < 3:
                raise ConnectionResetError("gone")
            return [1.0, 0.0]
        """
    )
    assert "ConnectionResetError: gone" in dropped(settings, max_retries=1).detail
    # The third call is the next one.
    assert scores(settings) == (1.0, 0.0)


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_judge_that_hangs_costs_its_group_alone(write: Write, kind: str) -> None:
    settings = write(
        f"""
        import asyncio, time

        class Judge:
            {kind} judge(self, group):
                if group.id == "hangs":
                    {"time.sleep(600)" if kind == "def" else "await asyncio.sleep(600)"}
                return [1.0, 0.0]
        """,
        "Judge",
        timeout_s=0.2,
    )
    hanging = replace(GROUP, id="hangs")
    first, second = asyncio.run(make_judge(settings).judge([hanging, GROUP]))
    assert str(first) == "TimeoutError: no answer within 0.2 s"
    assert second == Verdict((1.0, 0.0))
    assert dropped(settings, hanging).reason == "judge_failed"


def test_one_bad_group_of_a_call_for_many_does_not_take_the_others_along(
    write: Write,
) -> None:
    settings = write(
        """
        class Judge:
            def judge(self, groups):
                return [[{"g": 1.0}[group.id], 0.0] for group in groups]
        """,
        "Judge",
    )
    config = RunConfig(mixture={"online_fraction": 1})  # type: ignore[arg-type]
    worker = RewardWorker(config, make_judge(settings), backoff_s=0.0)
    bad = replace(GROUP, id="bad")
    good, lost = asyncio.run(worker.judge([GROUP, bad]))
    assert good == Verdict((1.0, 0.0))
    assert isinstance(lost, Dropped) and "KeyError: 'bad'" in lost.detail
    short = write(
        "class Judge:\n    def judge(self, groups): return [[1.0, 0.0]]", "Judge"
    )
    two = asyncio.run(
        RewardWorker(config, make_judge(short), backoff_s=0.0).judge([GROUP, bad])
    )
    assert two == [Verdict((1.0, 0.0))] * 2
    none = write("class Judge:\n    def judge(self, groups): return []", "Judge")
    assert "one verdict for each of 1 groups, got []" in dropped(none).detail
