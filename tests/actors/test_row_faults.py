"""A row that vLLM's processor, its template or its embedding refuses is that row's drop; the others' answers stay."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.bdhs.sampling import Outcome, generate_pairs
from actors.bdhs.similarity import LexicalSimilarity
from actors.engine.vllm_engine import VllmEngine
from actors.image_tokens import ImageTokenCounter
from common.config import Model, OnlineBdhs, Rollout
from common.data.images import ImageStore
from common.errors import Refused
from common.protocols import GenerationRequest
from common.records import Dropped, Message, Part, PreferencePair, Prompt, RolloutGroup
from tests.actors.engines import MAX_LENGTH, EnginePool, Kind, Run
from tests.row_faults.rows import (
    FAULTS,
    REASONS,
    TRUE,
    bad_pair,
    delete_picture,
    fussy_qwen,
    good_pair,
)
from tests.tiny_models import make_prompt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fussy_qwen(tmp_path_factory.mktemp("model"))


def greedy(prompt: Prompt, max_tokens: int = 8, **changes: Any) -> GenerationRequest:
    return GenerationRequest(
        prompt.id,
        prompt,
        num_completions=1,
        temperature=0.0,
        max_tokens=max_tokens,
        **changes,
    )


class Finished:
    """An output of vLLM of which only the end is read."""

    def __init__(self, finish_reason: str) -> None:
        self.outputs = [SimpleNamespace(finish_reason=finish_reason)]


class StubEngine(VllmEngine):
    """vLLM whose processor raises `error` about the prompts with these ids, and whose answers are not made."""

    def __init__(self, path: Path, error: Exception, bad_texts: tuple[str, ...]):
        self._error = error
        self._bad_texts = bad_texts
        self.submitted: list[str] = []
        self.num_failures = 0
        self.num_forgotten = 0
        super().__init__(Model(path=str(path), max_length=MAX_LENGTH), Rollout())

    def _launch(self, arguments: dict[str, Any]) -> None:
        pass

    async def _render(self, payload: dict[str, Any]) -> Any:
        text = self.encoder.tokenizer.decode(payload["prompt_token_ids"])
        if any(bad in text for bad in self._bad_texts):
            raise self._error
        return dict(payload)

    async def _submit(self, request_id: str, rendered: Any, params: Any) -> Any:
        self.submitted.append(request_id)

        failed = len(self.submitted) <= self.num_failures

        async def finished() -> Finished:
            return Finished("error" if failed else "stop")

        return finished()

    async def _echo(self) -> str:
        return "0"

    async def _forget_images(self) -> None:
        self.num_forgotten += 1

    async def _load_adapter(self, adapter: Any) -> None: ...

    async def _abort(self, request_ids: Any) -> None: ...

    async def _swap(self, load: Any, version: str) -> str:
        return version

    async def _on_workers(self, method: str, *args: Any) -> list[Any]:
        return []

    async def sleep(self, level: int) -> None: ...

    async def wake(self) -> None: ...

    async def close(self) -> None: ...


def text_prompt(text: str) -> Prompt:
    return Prompt(text, (Message("user", (Part("text", text),)),), ())


@pytest.mark.parametrize(
    "error", [ValueError("absolute aspect ratio"), KeyError("size"), IndexError()]
)
def test_whatever_rendering_raises_is_that_rows_drop(
    policy_path: Path, error: Exception, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = StubEngine(policy_path, error, ("circle",))
    monkeypatch.setattr(
        "actors.engine.vllm_engine.to_group", lambda request, *_: request.id
    )
    names = ("a star", "a circle", "a ring")
    results = run(engine.generate([greedy(text_prompt(name)) for name in names]))
    assert (results[0], results[2]) == ("a star", "a ring")
    assert isinstance(results[1], Dropped)
    assert (results[1].id, results[1].reason) == ("a circle", "processor")
    assert len(engine.submitted) == 2
    # vLLM may have noted pictures of the prompt as sent to its engine.
    assert engine.num_forgotten == 1
    with pytest.raises(Refused, match="vLLM's processor takes, got"):
        run(engine.token_logprobs(text_prompt("a circle"), (300,)))


@pytest.mark.parametrize("num_failures", [0, 1, 2])
def test_a_request_that_vllm_fails_at_is_tried_once_more(
    policy_path: Path, num_failures: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = StubEngine(policy_path, ValueError(), ())
    engine.num_failures = num_failures
    monkeypatch.setattr("actors.engine.vllm_engine.to_group", lambda *_: "answered")
    (result,) = run(engine.generate([greedy(text_prompt("a star"))]))
    assert len(engine.submitted) == min(num_failures + 1, 2)
    if num_failures < 2:
        assert result == "answered"
    else:
        assert isinstance(result, Dropped)
        assert (result.id, result.reason) == ("a star", "engine_error")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate")]
)
def test_want_of_memory_ends_the_call(
    policy_path: Path, error: Exception, run: Run
) -> None:
    engine = StubEngine(policy_path, error, ("circle",))
    with pytest.raises(type(error)) as info:
        run(engine.generate([greedy(text_prompt("a circle"))]))
    assert info.value is error


def test_an_answer_that_cannot_be_encoded_is_that_answers_drop(
    policy_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = StubEngine(policy_path, ValueError(), ())
    encode = engine.encoder.encode_response

    def refuses_stars(text: str) -> tuple[int, ...]:
        if "star" in text:
            raise Refused("tokenizer", "no star")
        return encode(text)

    monkeypatch.setattr(engine.encoder, "encode_response", refuses_stars)
    monkeypatch.setattr(engine.encoder, "encode_prefix", refuses_stars)
    monkeypatch.setattr("actors.engine.vllm_engine.token_logprobs", lambda _, ids: ids)
    prompt = text_prompt("What is seen?")
    scored = run(engine.score([(prompt, "a star"), (prompt, "a ring")]))
    assert scored == [
        Dropped(prompt.id, "tokenizer", "no star"),
        encode("a ring"),
    ]
    (begun,) = run(engine.generate([greedy(prompt, prefix="a star")]))
    assert begun == Dropped(prompt.id, "tokenizer", "no star")


@pytest.mark.real
@FAULTS
def test_rollouts_and_scores(
    model: Path, fault: str, engines: EnginePool, tmp_path: Path, run: Run
) -> None:
    """Qwen2.5-VL's processor inside vLLM raises about a picture of 300 : 1."""
    engine = engines.get(model, "stepped")
    store = ImageStore(tmp_path / "pictures")
    good = [good_pair(store, number) for number in range(3)]
    bad = bad_pair(store, fault)
    if fault == "deleted_picture":
        delete_picture(store.root, bad)
    pairs = [good[0], bad, *good[1:]]

    expected = run(engine.generate([greedy(pair.prompt) for pair in good]))
    first, dropped, *others = run(
        engine.generate([greedy(pair.prompt) for pair in pairs])
    )
    assert isinstance(dropped, Dropped)
    assert (dropped.id, dropped.reason) == ("bad", REASONS[fault])
    assert [first, *others] == expected

    expected = run(engine.score([(pair.prompt, TRUE) for pair in good]))
    first, dropped, *others = run(engine.score([(pair.prompt, TRUE) for pair in pairs]))
    assert isinstance(dropped, Dropped)
    assert dropped.reason == REASONS[fault]
    assert [first, *others] == expected


@pytest.mark.real
@FAULTS
def test_bdhs(
    model: Path, fault: str, engines: EnginePool, tmp_path: Path, run: Run
) -> None:
    engine = engines.get(model, "stepped")
    store = ImageStore(tmp_path / "pictures")
    good = [good_pair(store, number).prompt for number in range(2)]
    bad = bad_pair(store, fault)
    if fault == "deleted_picture":
        delete_picture(store.root, bad)

    async def outcomes(prompts: list[Prompt]) -> dict[str, Outcome]:
        by_id: dict[str, Outcome] = {}
        async for outcome in generate_pairs(
            iter(prompts),
            engine.generate,
            config=OnlineBdhs(max_tokens=8, max_answer_tokens=8, max_attempts=2),
            similarity=LexicalSimilarity(),
            num_image_tokens=ImageTokenCounter(engine.encoder),
        ):
            by_id[outcome.prompt_id] = outcome
        return by_id

    expected = run(outcomes(good))
    mixed = run(outcomes([good[0], bad.prompt, good[1]]))
    dropped = mixed.pop("bad").result
    assert isinstance(dropped, Dropped)
    assert dropped.reason == REASONS[fault]
    assert mixed == expected
    assert all(
        not isinstance(o.result, PreferencePair) or o.attempts for o in mixed.values()
    )


async def nothing() -> None: ...


@pytest.mark.real
@pytest.mark.parametrize(
    ("kind", "drifts"), [("stepped", False), ("async", False), ("async", True)]
)
def test_a_picture_of_a_prompt_that_was_too_long_is_not_missed_later(
    kind: Kind,
    drifts: bool,
    policy_path: Path,
    engines: EnginePool,
    store: ImageStore,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only its expanded picture makes the first prompt too long: it is rendered, so vLLM notes the picture as sent."""
    engine = engines.get(policy_path, kind)
    seed = 777 + drifts
    short = make_prompt(store, seed)
    num_tokens = len(engine.encoder.encode_prompt(short).token_ids)
    words = " ring" * (MAX_LENGTH - num_tokens + 8)
    long = make_prompt(store, seed, text=f"Describe the image.{words}")
    if drifts:
        # The next request then fails inside vLLM, and is given to it again.
        monkeypatch.setattr(engine, "_forget_images", nothing)
    (dropped,) = run(engine.generate([greedy(long)]))
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "prompt_too_long"
    tries = []
    submit = engine._submit

    async def counted(request_id: str, rendered: Any, params: Any) -> Any:
        tries.append(request_id)
        return await submit(request_id, rendered, params)

    monkeypatch.setattr(engine, "_submit", counted)
    (group,) = run(engine.generate([greedy(short)]))
    assert isinstance(group, RolloutGroup)
    assert len(tries) == 1 + drifts
