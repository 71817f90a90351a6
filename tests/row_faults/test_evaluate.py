"""A prompt that gets no answer and a held-out pair that gets no score, in an evaluation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.evaluation.asking import Asker
from cluster.evaluation.grounding import grounding_gate, pass_gate
from cluster.evaluation.measure import Evaluator
from cluster.runtime.clients import RolloutClient
from common.config import Evaluation
from common.data.datasets import IMAGES, write_pairs
from common.data.images import ImageStore
from common.errors import UserError
from common.protocols import GenerationRequest
from common.records import Dropped, Prompt
from tests.cluster.runs import make_config
from tests.fakes.runtime import LocalHandle
from tests.row_faults.rows import delete_picture, good_pairs


class RefusingPolicy:
    """An engine that can be given no prompt."""

    async def generate(self, requests: list[GenerationRequest]) -> list[Dropped]:
        return [Dropped(request.id, "processor", "200:1") for request in requests]


class IndifferentPolicy(RefusingPolicy):
    """Likes all answers alike."""

    async def score(self, answers: Sequence[tuple[Prompt, str]]) -> list[Any]:
        return [(-0.5,) for _ in answers]


def test_evaluate_stops_without_an_answer(tmp_path: Path) -> None:
    evaluator = Evaluator(make_config(tmp_path), ImageStore(tmp_path / "images"))
    client = RolloutClient(LocalHandle(RefusingPolicy()), 30)
    expected = (
        r"got none to 4 prompts; dropped \{'processor': 4\}, such as processor \("
    )
    with pytest.raises(UserError, match=expected):
        asyncio.run(evaluator.validate([client], (), None))


def test_evaluate_stops_when_pairs_are_all_there_is_and_none_is_scored(
    tmp_path: Path, store: ImageStore
) -> None:
    class Scorer:
        async def score(self, answers: Sequence[tuple[Prompt, str]]) -> list[Dropped]:
            reasons = ("processor", "special_token")
            return [
                Dropped(prompt.id, reasons[number % 4 > 1])
                for number, (prompt, _) in enumerate(answers)
            ]

    write_pairs(tmp_path / "held", good_pairs(store))
    config = make_config(
        tmp_path, evaluation__suites="[]", evaluation__pairs=tmp_path / "held"
    )
    evaluator = Evaluator(config, store)
    client = RolloutClient(LocalHandle(Scorer()), 30)
    expected = r"evaluation.pairs: .* got none; dropped \{'processor': \d+, 'special"
    with pytest.raises(UserError, match=expected):
        asyncio.run(evaluator.measure("test", [client], (), None, "asking"))


def test_evaluate_counts_held_out_pairs_without_their_picture(
    tmp_path: Path, store: ImageStore
) -> None:
    pairs = good_pairs(store)
    write_pairs(tmp_path / "held", pairs)
    delete_picture(tmp_path / "held" / IMAGES, pairs[1])
    settings = Evaluation(pairs=str(tmp_path / "held"), bootstrap_samples=20)
    gate = grounding_gate(settings, [], store)
    asker = Asker([IndifferentPolicy()])
    grounding, logps = asyncio.run(pass_gate(gate, asker, None, settings))
    assert grounding.dropped == {"image_missing": 1}
    assert set(logps["true"]) == {"good-0", "good-2", "good-3"}
