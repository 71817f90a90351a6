"""What every Engine owes its callers, fakes included."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.images import ImageStore
from common.protocols import Engine, GenerationRequest
from common.records import Dropped, ImageRef, Prompt, RolloutGroup
from tests.tiny_models import TinyLlava, make_prompt

Start = Callable[[TinyLlava, str], Engine]


def fake(_: Start) -> Engine:
    return importlib.import_module("tests.fakes").FakeEngine()  # type: ignore[no-any-return]


ENGINES: dict[str, Callable[[Start], Engine]] = {
    "fake": fake,
    "stepped": lambda start: start(TinyLlava(), "stepped"),
    "async": lambda start: start(TinyLlava(), "async"),
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name == "fake" else pytest.mark.real)
        for name in ENGINES
    ],
)
def engine(request: pytest.FixtureRequest, start_engine: Start) -> Engine:
    return ENGINES[request.param](start_engine)


def test_one_group_per_request_in_order_with_as_many_completions_as_asked(
    engine: Engine, store: ImageStore, run: Any
) -> None:
    requests = [
        GenerationRequest(f"g{n}", make_prompt(store, n), n, 1.0, 6, seed=n)
        for n in (3, 1, 2)
    ]
    groups = run(engine.generate(requests))
    assert [group.id for group in groups] == ["g3", "g1", "g2"]
    for request, group in zip(requests, groups, strict=True):
        assert isinstance(group, RolloutGroup) and group.prompt == request.prompt
        assert len(group.completions) == request.num_completions
        assert 0 < group.num_image_tokens < len(group.prompt_token_ids)
        for one in group.completions:
            assert 0 < len(one.token_ids) <= request.max_tokens
            assert (
                one.min_weight_version
                == one.max_weight_version
                == engine.weight_version
            )


def test_the_same_seed_gives_the_same_answers_and_greedy_ones_are_all_alike(
    engine: Engine, store: ImageStore, run: Any
) -> None:
    sampled = GenerationRequest("s", make_prompt(store, 5), 3, 1.0, 6, seed=9)
    greedy = GenerationRequest("t", make_prompt(store, 5), 3, 0.0, 6)
    first, second = (run(engine.generate([sampled, greedy])) for _ in range(2))
    assert first == second
    assert len({one.token_ids for one in first[1].completions}) == 1


def test_a_missing_image_is_dropped_with_its_reason(
    engine: Engine, store: ImageStore, run: Any, tmp_path: Path
) -> None:
    good = make_prompt(store, 6)
    bad = Prompt(
        "bad", good.messages, (ImageRef("0" * 64, str(tmp_path / "nowhere.png")),)
    )
    results = run(
        engine.generate(
            [GenerationRequest(p.id, p, 2, 1.0, 4, seed=0) for p in (bad, good)]
        )
    )
    assert isinstance(results[0], Dropped) and (results[0].id, results[0].reason) == (
        "bad",
        "image_missing",
    )
    assert isinstance(results[1], RolloutGroup)


def test_scores_are_logprobs_one_per_token(
    engine: Engine, store: ImageStore, run: Any
) -> None:
    (group,) = run(
        engine.generate([GenerationRequest("g", make_prompt(store, 7), 1, 0.0, 5)])
    )
    token_ids = group.completions[0].token_ids
    found = run(engine.token_logprobs(group.prompt, token_ids))
    assert len(found) == len(token_ids) and all(value <= 0 for value in found)


def test_whole_answers_are_scored_in_order_and_what_cannot_run_says_why(
    engine: Engine, store: ImageStore, run: Any, tmp_path: Path
) -> None:
    """The same figures as one by one; another answer or picture has others."""
    good, other = make_prompt(store, 8), make_prompt(store, 9)
    bad = Prompt(
        "bad", good.messages, (ImageRef("0" * 64, str(tmp_path / "nowhere.png")),)
    )
    first, lost, longer, elsewhere = run(
        engine.score([(good, "no"), (bad, "no"), (good, "no no"), (other, "no")])
    )
    assert isinstance(lost, Dropped) and (lost.id, lost.reason) == (
        "bad",
        "image_missing",
    )
    assert len(longer) > len(first) > 1 and first != elsewhere
    assert run(engine.score([(good, "no")])) == [pytest.approx(first, abs=1e-4)]
    assert run(engine.score([])) == []


def test_nothing_asked_nothing_answered(engine: Engine, run: Any) -> None:
    assert run(engine.generate([])) == []
