"""What every Engine owes its callers, fakes included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.data.images import ImageStore
from common.protocols import Engine, GenerationRequest
from common.records import Dropped, ImageRef, Prompt, RolloutGroup
from tests.actors.engines import EnginePool, Run
from tests.fakes.engine import FakeEngine
from tests.probes import probe_of
from tests.tiny_models import make_prompt, tiny_llava


@pytest.fixture(
    scope="module",
    params=[
        "fake",
        pytest.param("stepped", marks=pytest.mark.real),
        pytest.param("async", marks=pytest.mark.real),
    ],
)
def engine(request: pytest.FixtureRequest, engines: EnginePool) -> Engine:
    if request.param == "fake":
        return FakeEngine()
    shared: Engine = engines.get(tiny_llava(), request.param)
    return shared


def without_image(prompt: Prompt, folder: Path) -> Prompt:
    missing = ImageRef("0" * 64, str(folder / "nowhere.png"))
    return Prompt("bad", prompt.messages, (missing,))


def test_one_group_per_request_in_order_with_as_many_completions_as_asked(
    engine: Engine,
    store: ImageStore,
    run: Run,
) -> None:
    requests = []
    for number in (3, 1, 2):
        prompt = make_prompt(store, number)
        request = GenerationRequest(
            f"g{number}",
            prompt,
            number,
            1.0,
            6,
            seed=number,
        )
        requests.append(request)
    groups = run(engine.generate(requests))
    assert [group.id for group in groups] == ["g3", "g1", "g2"]
    version = engine.weight_version
    for request, group in zip(requests, groups, strict=True):
        assert isinstance(group, RolloutGroup)
        assert group.prompt == request.prompt
        assert len(group.completions) == request.num_completions
        assert 0 < group.num_image_tokens < len(group.prompt_token_ids)
        for completion in group.completions:
            assert 0 < len(completion.token_ids) <= request.max_tokens
            assert completion.min_weight_version == version
            assert completion.max_weight_version == version


def test_the_same_seed_gives_the_same_answers_and_greedy_ones_are_all_alike(
    engine: Engine,
    store: ImageStore,
    run: Run,
) -> None:
    sampled = GenerationRequest(
        "s",
        make_prompt(store, 5),
        3,
        1.0,
        6,
        seed=9,
    )
    greedy = GenerationRequest(
        "t",
        make_prompt(store, 5),
        3,
        0.0,
        6,
    )
    first = run(engine.generate([sampled, greedy]))
    second = run(engine.generate([sampled, greedy]))
    # Also from warm caches.
    assert first == second
    _, greedy_group = first
    answers = {completion.token_ids for completion in greedy_group.completions}
    assert len(answers) == 1


def test_an_engine_that_slept_answers_as_before(
    engine: Engine,
    store: ImageStore,
    run: Run,
) -> None:
    """Level 1 keeps the weights."""
    requests = [GenerationRequest("s", make_prompt(store, 5), 3, 1.0, 6, seed=9)]

    async def scenario() -> None:
        before = await engine.generate(requests)
        await engine.sleep(1)
        await engine.wake()
        assert await engine.generate(requests) == before

    run(scenario())


def test_a_missing_image_is_dropped_with_its_reason(
    engine: Engine,
    store: ImageStore,
    run: Run,
    tmp_path: Path,
) -> None:
    good = make_prompt(store, 6)
    bad = without_image(good, tmp_path)
    requests = [
        GenerationRequest("bad", bad, 2, 1.0, 4, seed=0),
        GenerationRequest("good", good, 2, 1.0, 4, seed=0),
    ]
    dropped, group = run(engine.generate(requests))
    assert isinstance(dropped, Dropped)
    assert (dropped.id, dropped.reason) == ("bad", "image_missing")
    assert isinstance(group, RolloutGroup)


def test_scores_are_logprobs_one_per_token(
    engine: Engine,
    store: ImageStore,
    run: Run,
) -> None:
    request = GenerationRequest(
        "g",
        make_prompt(store, 7),
        1,
        0.0,
        5,
    )
    (group,) = run(engine.generate([request]))
    token_ids = group.completions[0].token_ids
    logprobs = run(engine.token_logprobs(group.prompt, token_ids))
    assert len(logprobs) == len(token_ids)
    assert max(logprobs) <= 0


def test_sampled_answers_bring_the_log_probs_that_scoring_gives_them(
    engine: Engine,
    store: ImageStore,
    run: Run,
) -> None:
    """Those of the policy itself; who does not ask for them gets none."""
    request = GenerationRequest("g", make_prompt(store, 7), 3, 1.0, 6, seed=3)
    asked = replace(request, logprobs=True)
    plain, group = run(engine.generate([request, asked]))
    for completion in group.completions:
        scored = run(engine.token_logprobs(group.prompt, completion.token_ids))
        assert completion.token_logprobs == pytest.approx(scored, abs=1e-4)
    assert {completion.token_logprobs for completion in plain.completions} == {None}
    # Asking changes nothing of what is sampled.
    tokens = [completion.token_ids for completion in group.completions]
    assert tokens == [completion.token_ids for completion in plain.completions]


def test_an_engine_does_not_differ_from_itself(
    engine: Engine,
    store: ImageStore,
    run: Run,
) -> None:
    """The noise between an engine and log-probs that are its own is none; it is measured once."""
    request = GenerationRequest("g", make_prompt(store, 7), 1, 0.0, 5)
    (group,) = run(engine.generate([request]))
    token_ids = group.completions[0].token_ids
    logprobs = run(engine.token_logprobs(group.prompt, token_ids))
    probe = probe_of(group.prompt, token_ids, logprobs)
    reading = run(engine.calibrate(probe))
    assert reading.abs_max == pytest.approx(0, abs=1e-4)
    assert reading.kl_max == pytest.approx(0, abs=1e-4)
    assert run(engine.calibrate(probe)) == reading


def test_whole_answers_are_scored_in_order_and_what_cannot_run_says_why(
    engine: Engine,
    store: ImageStore,
    run: Run,
    tmp_path: Path,
) -> None:
    """The same figures as one by one; another answer or picture has others."""
    good = make_prompt(store, 8)
    other = make_prompt(store, 9)
    bad = without_image(good, tmp_path)
    answers = [
        (good, "no"),
        (bad, "no"),
        (good, "no no"),
        (other, "no"),
    ]
    first, dropped, longer, elsewhere = run(engine.score(answers))
    assert isinstance(dropped, Dropped)
    assert (dropped.id, dropped.reason) == ("bad", "image_missing")
    # The end-of-sequence token is scored, too.
    assert len(longer) > len(first) > 1
    assert first != elsewhere
    (alone,) = run(engine.score([(good, "no")]))
    assert alone == pytest.approx(first, abs=1e-4)
    assert run(engine.score([])) == []


def test_no_requests_give_no_results(engine: Engine, run: Run) -> None:
    assert run(engine.generate([])) == []
