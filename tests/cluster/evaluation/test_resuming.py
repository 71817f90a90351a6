"""All engines are asked, in order; what a killed evaluation got is not asked again, and only by its own settings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.evaluation import chunks
from cluster.evaluation.asking import Asker, Scored
from cluster.evaluation.chunks import in_chunks
from cluster.evaluation.kept import GROUPS, VERDICTS, KeptAnswers
from common.errors import UserError
from common.protocols import GenerationRequest
from common.records import (
    Completion,
    Dropped,
    PreferencePair,
    Prompt,
    Response,
    RolloutGroup,
    Verdict,
)
from tests.reward.builders import group, prompt


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 3)


class Engine:
    """Answers with the prompt's id; dies when it was called so often."""

    def __init__(self, delay_s: float = 0.0, dies_after: int = 99) -> None:
        self.asked: list[str] = []
        self._delay_s = delay_s
        self._calls_left = dies_after

    async def _call(self, ids: Sequence[str]) -> None:
        if self._calls_left == 0:
            raise RuntimeError("killed")
        self._calls_left -= 1
        await asyncio.sleep(self._delay_s)
        self.asked += ids

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        await self._call([request.id for request in requests])
        results: list[RolloutGroup | Dropped] = []
        for request in requests:
            if request.id == "p4":
                results.append(Dropped("p4", "prompt_too_long", "9 tokens"))
                continue
            answer = Completion((1, 2), f"I am {request.id}.", 0, 0, "stop")
            results.append(RolloutGroup(request.id, request.prompt, (1,), 0, (answer,)))
        return results

    async def score(self, answers: Sequence[tuple[Prompt, str]]) -> list[Scored]:
        await self._call([text for _, text in answers])
        return [(-0.1, -1 / 3, float(len(text))) for _, text in answers]


REQUESTS = [
    GenerationRequest(f"p{index}", prompt(id=f"p{index}"), 1, 0.0, 5)
    for index in range(10)
]
PAIRS = [
    PreferencePair(f"x{index}", prompt(), Response("yes"), Response(f"{index}"), "x")
    for index in range(4)
]


def ask(
    engines: Sequence[Engine], kept: KeptAnswers | None = None
) -> tuple[object, object]:
    async def run() -> tuple[object, object]:
        asker = Asker(engines, kept)
        groups = await asker.generate("shapes/captions", REQUESTS)
        return groups, await asker.score_pairs("pairs", PAIRS)

    return asyncio.run(run())


def test_every_engine_takes_the_next_chunk_when_it_is_free() -> None:
    slow, quick = Engine(0.2), Engine(0.001)
    results = ask([slow, quick])
    assert slow.asked[:3] == ["p0", "p1", "p2"]
    assert quick.asked[:7] == ["p3", "p4", "p5", "p6", "p7", "p8", "p9"]
    assert results == ask([Engine()])


def test_progress_counts_every_item_once() -> None:
    async def call(items: Sequence[int]) -> list[int]:
        return [-item for item in items]

    done: list[int] = []
    numbers = list(range(7))
    results = asyncio.run(in_chunks([call, call], numbers, done.append))
    assert results == [-number for number in numbers]
    assert sum(done) == 7
    assert asyncio.run(in_chunks([call], [], done.append)) == []


@pytest.mark.parametrize("dies_after", [0, 1, 3, 4, 5, 6])
def test_resumed_is_uninterrupted(tmp_path: Path, dies_after: int) -> None:
    """Four chunks of prompts, three of pairs' answers: killed after each number of them."""
    path = tmp_path / "answers.jsonl"
    kept = KeptAnswers(path, {"policy": "a"})
    with pytest.raises(RuntimeError, match="killed"):
        ask([Engine(dies_after=dies_after)], kept)
    # A kill leaves the file open and its last line cut.
    with path.open("a") as file:
        file.write('{"event": "chunk", "section": "answers/sh')
    engine = Engine()
    resumed = KeptAnswers(path, {"policy": "a"})
    assert ask([engine], resumed) == ask([Engine()])
    num_items = len(REQUESTS) + 2 * len(PAIRS)
    num_kept = min(3 * dies_after, 10)
    num_kept += 3 * max(dies_after - 4, 0)
    assert len(engine.asked) == num_items - num_kept
    # Nothing is left to ask for a third time.
    idle = Engine(dies_after=0)
    assert ask([idle], KeptAnswers(path, {"policy": "a"})) == ask([Engine()])
    resumed.discard()
    assert not path.exists()


def test_answers_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    KeptAnswers(path, {"policy": "a", "prompts": "b"}).close()
    KeptAnswers(path, {"policy": "a", "prompts": "b"}).close()
    with pytest.raises(UserError) as error:
        KeptAnswers(path, {"policy": "a", "prompts": "c"})
    assert f"{path}: expected what is left of an evaluation with this prompts" in str(
        error.value
    )


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path / "kept.jsonl", {})
    groups: list[RolloutGroup | Dropped]
    groups = [group(prompt({"a": [1]}), "Größe\n", "b"), Dropped("x", "y", "z")]
    kept.section("groups", GROUPS).put(0, groups)
    verdicts: list[Verdict | Dropped]
    verdicts = [Verdict((0.1 + 0.2, -1.0), ("a", "b")), Dropped("x", "y")]
    kept.section("verdicts", VERDICTS).put(3, verdicts)
    again = KeptAnswers(tmp_path / "kept.jsonl", {})
    assert again.section("groups", GROUPS).get(0, 2) == groups
    assert again.section("verdicts", VERDICTS).get(3, 2) == verdicts
    assert again.section("verdicts", VERDICTS).get(0, 2) is None
    # Another number of items is another list.
    assert again.section("groups", GROUPS).get(0, 3) is None
