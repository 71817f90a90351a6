"""The frame around a judge: how many groups are with it at once, and what its cache of verdicts keeps."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import config
from common.config import Reward, RunConfig
from common.protocols import JudgeError
from common.records import (
    Completion,
    Dropped,
    ImageRef,
    Message,
    Part,
    RolloutGroup,
    Verdict,
)
from reward.judging import Judging
from reward.verdict_cache import VerdictCache
from reward.worker import RewardWorker
from tests.reward.builders import TRUE, caption_prompt, group, prompt
from tests.reward.judging import CLEAR, FlakyJudge

GROUP = group(prompt(), "a", "b")


class Watched:
    """Takes a moment for every call, and remembers how many groups it had at once."""

    name = "watched"
    call_s = 0.0

    def __init__(self, fails: Callable[[RolloutGroup], bool] = lambda _: False) -> None:
        self.most = 0
        self.seen: list[str] = []
        self._running = 0
        self._fails = fails

    async def judge(
        self, groups: Sequence[RolloutGroup]
    ) -> list[Verdict | Dropped | JudgeError]:
        self._running += len(groups)
        self.most = max(self.most, self._running)
        self.seen += [judged.id for judged in groups]
        await asyncio.sleep(self.call_s)
        self._running -= len(groups)
        answers: list[Verdict | Dropped | JudgeError] = []
        for judged in groups:
            answers.append(JudgeError("busy") if self._fails(judged) else CLEAR)
        return answers


def groups_of(count: int) -> list[RolloutGroup]:
    return [replace(GROUP, id=str(index)) for index in range(count)]


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    concurrency=st.integers(1, 7),
)
def test_no_more_groups_than_allowed_are_judged_at_once(
    sizes: list[int], concurrency: int
) -> None:
    judge = Watched()
    judging = Judging(judge, 0, concurrency)

    async def ask_all() -> list[list[Verdict | Dropped]]:
        calls = [judging.verdicts(groups_of(size)) for size in sizes]
        return await asyncio.gather(*calls)

    answers = asyncio.run(ask_all())
    assert [len(answer) for answer in answers] == sizes
    assert judge.most <= concurrency
    # No place stays free while a group waits.
    assert judge.most == min(sum(sizes), concurrency)
    assert len(judge.seen) == sum(sizes)


def test_a_call_that_is_given_up_gives_its_places_back() -> None:
    judge = Watched()
    judge.call_s = 0.01
    judging = Judging(judge, 0, concurrency=2)

    async def give_up() -> list[Verdict | Dropped]:
        for _ in range(5):
            task = asyncio.create_task(judging.verdicts(groups_of(4)))
            await asyncio.sleep(0.001)
            task.cancel()
        return await judging.verdicts(groups_of(4))

    assert asyncio.run(asyncio.wait_for(give_up(), 10)) == [CLEAR] * 4


def test_only_the_group_that_failed_is_asked_again() -> None:
    judge = Watched(fails=lambda group: group.id == "1")
    answers = asyncio.run(Judging(judge, 2, 8, backoff_s=0.0).verdicts(groups_of(3)))
    assert [type(answer) for answer in answers] == [Verdict, Dropped, Verdict]
    assert judge.seen == ["0", "1", "2", "1", "1"]


# The cache.


def worker(folder: Path, judge: FlakyJudge) -> RewardWorker:
    run = RunConfig(
        mixture={"online_fraction": 1},  # type: ignore[arg-type]
        reward=Reward(cache=folder, max_retries=0),
    )
    return RewardWorker(run, judge, backoff_s=0.0)


def test_a_verdict_is_paid_for_once(tmp_path: Path) -> None:
    """By another worker, too, and whatever the group is called; what is not known is asked about."""
    judge = FlakyJudge(0, Verdict((1.5, -2.0), ("good", "bad")))
    first = asyncio.run(worker(tmp_path, judge).judge([GROUP]))
    other = group(prompt(id="p2"), "b", "a", id="new")
    renamed = replace(GROUP, id="again")
    again = asyncio.run(worker(tmp_path, judge).judge([renamed, other, GROUP]))
    assert again == first * 3
    assert judge.calls == {"g": 1, "new": 1}


def test_what_has_no_verdict_is_asked_again(tmp_path: Path) -> None:
    judge = FlakyJudge(1)
    (failed,) = asyncio.run(worker(tmp_path, judge).judge([GROUP]))
    assert isinstance(failed, Dropped)
    assert asyncio.run(worker(tmp_path, judge).judge([GROUP])) == [CLEAR]
    bad = FlakyJudge(0, Verdict((math.nan, 1.0)))
    other = group(prompt(), "x", "y")
    for _ in range(2):
        (dropped,) = asyncio.run(worker(tmp_path, bad).judge([other]))
        assert isinstance(dropped, Dropped)
    assert bad.calls == {"g": 2}


PICTURE = replace(
    GROUP, prompt=replace(prompt({"label": "x"}), images=(ImageRef("1" * 64, "/a"),))
)
CHANGES = {
    "a picture": replace(
        PICTURE, prompt=replace(PICTURE.prompt, images=(ImageRef("2" * 64, "/a"),))
    ),
    "no picture": replace(PICTURE, prompt=replace(PICTURE.prompt, images=())),
    "the truth": replace(PICTURE, prompt=replace(PICTURE.prompt, truth={"label": "y"})),
    "the reference": replace(PICTURE, prompt=replace(PICTURE.prompt, reference="r")),
    "the question": replace(
        PICTURE,
        prompt=replace(
            PICTURE.prompt, messages=(Message("user", (Part("text", "Why?"),)),)
        ),
    ),
    "the order": replace(PICTURE, completions=PICTURE.completions[::-1]),
    "an answer": replace(
        PICTURE,
        completions=(PICTURE.completions[0], Completion((99,), "c", 0, 0, "stop")),
    ),
    "a cut": replace(
        PICTURE,
        completions=(
            PICTURE.completions[0],
            replace(PICTURE.completions[1], finish_reason="length"),
        ),
    ),
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES)
def test_whatever_a_judge_sees_counts(tmp_path: Path, changed: RolloutGroup) -> None:
    cache = VerdictCache(tmp_path, "judge")
    cache.put(PICTURE, CLEAR)
    assert cache.get(PICTURE) == CLEAR
    assert cache.get(changed) is None
    members = (("rules", (1.0, 0.0)), ("vlm", (0.5, 0.25)))
    ordered = replace(CLEAR, first_wins=0.75, members=members)
    cache.put(changed, ordered)
    assert cache.get(changed) == ordered
    assert VerdictCache(tmp_path, "other settings").get(PICTURE) is None
    # A picture is its content, wherever it lies.
    moved = replace(PICTURE.prompt, images=(ImageRef("1" * 64, "/elsewhere"),))
    assert cache.get(replace(PICTURE, prompt=moved)) == CLEAR


DAMAGE = {
    "torn": b'{"scores": [1.0,',
    "empty": b"",
    "bytes": b"\xff\xfe\x00",
    "another file": b"[1, 2]",
    "a score too many": b'{"scores": [1, 2, 3], "notes": []}',
    "nan": b'{"scores": [NaN, 1], "notes": []}',
    "words": b'{"scores": ["a", "b"], "notes": []}',
    "no notes": b'{"scores": [1, 2]}',
    "members": b'{"scores": [1, 2], "notes": [], "members": [["rules"]]}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_a_miss(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache = VerdictCache(tmp_path, "judge")
    cache.put(GROUP, CLEAR)
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(content)
    assert cache.get(GROUP) is None
    assert str(path) in caplog.text
    cache.put(GROUP, CLEAR)
    assert cache.get(GROUP) == CLEAR


def test_a_full_disk_costs_the_cache_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judge = FlakyJudge(0)
    asking = worker(tmp_path, judge)
    for index in range(256):
        # Where folders would have to be made lie files.
        (tmp_path / f"{index:02x}").touch()
    assert asyncio.run(asking.judge([GROUP])) == [CLEAR]
    assert asyncio.run(asking.judge([GROUP])) == [CLEAR]
    assert judge.calls == {"g": 2}
    assert caplog.text.count("cannot keep verdicts") == 1


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        asyncio.run(worker(tmp_path / "file" / "cache", FlakyJudge(0)).start())


def test_many_write_and_read_at_once(tmp_path: Path) -> None:
    """A reader gets a whole entry or none, whoever replaces it meanwhile; nothing is left behind."""
    verdicts = [Verdict((float(n), 0.0), ("x" * 5000, str(n))) for n in range(8)]

    def work(verdict: Verdict) -> list[Verdict | None]:
        cache = VerdictCache(tmp_path, "judge")
        read = []
        for _ in range(30):
            cache.put(GROUP, verdict)
            read.append(cache.get(GROUP))
        return read

    with ThreadPoolExecutor(8) as pool:
        for read in pool.map(work, verdicts):
            assert set(read) <= set(verdicts)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.suffix for path in files] == [".json"]
    assert json.loads(files[0].read_text())["notes"][0] == "x" * 5000


def test_the_judge_of_the_cache_is_the_configured_one(tmp_path: Path) -> None:
    """Other costs are another judge: nothing of the first one's is read."""
    rolled = group(caption_prompt(), TRUE, "There is a green ring at the bottom.")
    scores: list[tuple[float, ...]] = []
    for cost in (1.0, 3.0, 1.0):
        run = RunConfig(
            mixture={"online_fraction": 1},  # type: ignore[arg-type]
            reward=Reward(
                cache=tmp_path, judge=config.RulesJudge(hallucination_cost=cost)
            ),
        )
        (verdict,) = asyncio.run(RewardWorker(run).judge([rolled]))
        assert isinstance(verdict, Verdict)
        scores.append(verdict.scores)
    assert scores == [(0.0, -2.0), (0.0, -4.0), (0.0, -2.0)]
    assert len(list(tmp_path.rglob("*.json"))) == 2
