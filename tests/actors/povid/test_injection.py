"""POVID's injection against a real HTTP server on this machine: pairs, and every way to fail."""

from __future__ import annotations

import email.utils
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from actors.povid.injection import Row, pair_of
from common.endpoint import chat_endpoint
from common.endpoint.chat_endpoint import retry_after_s
from common.records import Dropped, ImageRef, PreferencePair, Prompt
from tests.actors.povid.injecting import (
    TRUTH,
    WRONG,
    always,
    config,
    inject,
    inject_all,
    make_prompt,
    one_after_the_other,
    reason_of,
)
from tests.chat_server import Answer, completion, refusal


def test_a_pair_and_what_it_cost(
    prompt: Prompt,
    image: ImageRef,
    cache: Path,
) -> None:
    """Two replies of 10 + 5 tokens at 2 and 4 per million: (20 · 2 + 10 · 4) / 10⁶."""
    other = replace(make_prompt("Describe it.", image), id="other")
    with always(completion(WRONG)) as server:
        settings = config(
            server.url,
            price_in=2.0,
            price_out=4.0,
            temperature=0.3,
        )
        injections, usage = inject_all(settings, cache, [prompt, other])
        body = server.asked[0].body
    pair = injections[0].result
    assert isinstance(pair, PreferencePair)
    assert (pair.id, pair.source) == ("povid/p", "povid")
    assert pair.chosen.text == TRUTH
    assert pair.rejected.text == WRONG
    assert pair.weight_version is None
    assert body["model"] == "writer"
    assert body["temperature"] == 0.3
    assert body["max_tokens"] == 1024
    assert usage["num_prompt_tokens"] == 20
    assert usage["num_completion_tokens"] == 10
    assert usage["cost"] == pytest.approx(8e-5)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (None, "no_reference"),
        (" \n", "no_reference"),
        ("x" * 10_000_000, "answer_too_long"),
    ],
    ids=["none", "blank", "long"],
)
def test_rows_that_are_not_worth_asking_are_not_asked(
    reference: str | None,
    expected: str,
    prompt: Prompt,
    image: ImageRef,
    cache: Path,
) -> None:
    # One character above the limit.
    long_question = make_prompt("x" * 20_001, image)
    with always(completion(WRONG)) as server:
        settings = config(server.url)
        injection = inject(settings, cache, replace(prompt, reference=reference))
        assert reason_of(injection) == expected
        injection = inject(settings, cache, long_question)
        assert reason_of(injection) == "question_too_long"
        assert not server.asked


def test_rate_limits_and_errors_are_retried(prompt: Prompt, cache: Path) -> None:
    script = [refusal(429), refusal(503), completion(WRONG)]
    with one_after_the_other(script) as server:
        injection = inject(config(server.url), cache, prompt)
        assert isinstance(injection.result, PreferencePair)
        assert len(server.asked) == 3


def test_retry_after_is_honoured(prompt: Prompt, cache: Path) -> None:
    limited = refusal(429, **{"Retry-After": "0.4"})
    with one_after_the_other([limited, completion(WRONG)]) as server:
        began = time.monotonic()
        inject(config(server.url), cache, prompt)
        assert time.monotonic() - began >= 0.4


def test_retry_after_has_a_limit(
    prompt: Prompt,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat_endpoint, "MAX_RETRY_AFTER_S", 0.01)
    # A day.
    limited = refusal(429, **{"Retry-After": "86400"})
    with one_after_the_other([limited, completion(WRONG)]) as server:
        injection = inject(config(server.url), cache, prompt)
        assert isinstance(injection.result, PreferencePair)


def test_retry_after_header() -> None:
    soon = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 58 <= retry_after_s(soon) <= 60
    assert retry_after_s("1.5") == 1.5
    # A date that has gone by asks for no pause.
    past = email.utils.formatdate(0)
    for header in (None, "soon", "-3", "inf", "nan", past):
        assert retry_after_s(header) == 0.0


def ok(body: str | bytes) -> Answer:
    """Any body under status 200."""
    return Answer(body if isinstance(body, bytes) else body.encode())


@pytest.mark.parametrize(
    ("answer", "expected", "num_requests"),
    [
        pytest.param(refusal(429), "endpoint_rate_limited", 3, id="429"),
        pytest.param(refusal(500), "endpoint_error", 3, id="500"),
        pytest.param(Answer(b"<html>", 502), "endpoint_error", 3, id="502 of a proxy"),
        pytest.param(refusal(400, "context too long"), "endpoint_refused", 1, id="400"),
        pytest.param(refusal(404, "no such model"), "endpoint_denied", 1, id="404"),
        pytest.param(refusal(413), "endpoint_refused", 1, id="413"),
        pytest.param(completion(None), "endpoint_empty", 1, id="null"),
        pytest.param(completion(" \n"), "endpoint_empty", 1, id="blank"),
        pytest.param(completion(WRONG, finish="length"), "cut_off", 1, id="cut off"),
        pytest.param(
            completion(None, finish="length"), "cut_off", 1, id="spent on thinking"
        ),
    ],
)
def test_what_fails_for_good_is_dropped_under_its_reason(
    answer: Answer,
    expected: str,
    num_requests: int,
    prompt: Prompt,
    cache: Path,
) -> None:
    with always(answer) as server:
        injection = inject(config(server.url), cache, prompt)
        assert reason_of(injection) == expected
        assert injection.asked == "failed"
        assert len(server.asked) == num_requests


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("<html>hello</html>", id="no JSON"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param("[" * 100_000, id="JSON without end"),
        pytest.param("[]", id="a list"),
        pytest.param('{"choices": []}', id="no choice"),
        pytest.param('{"error": {"message": "x"}}', id="error under 200"),
        pytest.param('{"choices": [{"message": {"content": [1]}}]}', id="no string"),
        pytest.param(
            '{"choices": [{"message": {"content": ""}}], "usage": 3}', id="usage"
        ),
        pytest.param(
            '{"choices": [{"message": {"content": "\\ud800"}}]}', id="half a pair"
        ),
        pytest.param("", id="no body"),
    ],
)
def test_a_body_that_is_no_completion_is_garbage(
    body: str | bytes,
    prompt: Prompt,
    cache: Path,
) -> None:
    with always(ok(body)) as server:
        injection = inject(config(server.url), cache, prompt)
        assert reason_of(injection) == "endpoint_garbage"
        assert injection.asked == "failed"
        assert len(server.asked) == 1


def test_what_was_paid_for_is_counted_although_it_is_empty(
    prompt: Prompt,
    cache: Path,
) -> None:
    with always(completion(None)) as server:
        for expected in ("failed", "cache"):
            settings = config(server.url)
            (injection,), usage = inject_all(settings, cache, [prompt])
            assert reason_of(injection) == "endpoint_empty"
            assert injection.asked == expected
            assert usage["num_prompt_tokens"] == 10
        assert len(server.asked) == 1


def test_what_an_endpoint_says_cannot_reach_the_terminal_s_controls(
    prompt: Prompt,
    cache: Path,
) -> None:
    with always(refusal(400, "\x1b[2Jgone \ud800\nnext")) as server:
        injection = inject(config(server.url), cache, prompt)
    assert isinstance(injection.result, Dropped)
    assert injection.result.detail.isprintable()
    assert "gone" in injection.result.detail


SILENT = [
    pytest.param(Answer(delay_s=30.0), id="hangs"),
    pytest.param(Answer(trickle=True), id="trickles"),
]


@pytest.mark.parametrize("silence", SILENT)
def test_silence_ends_with_the_timeout(
    silence: Answer,
    prompt: Prompt,
    cache: Path,
) -> None:
    """An endpoint that has never answered is not worth waiting for twice."""
    with always(silence) as server:
        began = time.monotonic()
        injection = inject(config(server.url, timeout_s=1.0), cache, prompt)
        assert 1.0 <= time.monotonic() - began < 10
        assert reason_of(injection) == "endpoint_timeout"
        assert injection.asked == "failed"
        assert len(server.asked) == 1


@pytest.mark.parametrize("silence", SILENT)
def test_an_endpoint_that_has_answered_gets_its_retries(
    silence: Answer,
    prompt: Prompt,
    cache: Path,
) -> None:
    with one_after_the_other([refusal(500), silence, completion(WRONG)]) as server:
        injection = inject(config(server.url, timeout_s=1.0), cache, prompt)
        assert isinstance(injection.result, PreferencePair)


def test_nobody_there(prompt: Prompt, cache: Path) -> None:
    with socket.socket() as taken:
        # Bound, but not listening: connections are refused.
        taken.bind(("127.0.0.1", 0))
        _, port = taken.getsockname()
        settings = config(f"http://127.0.0.1:{port}/v1", max_retries=50)
        began = time.monotonic()
        injection = inject(settings, cache, prompt)
    assert reason_of(injection) == "endpoint_unreachable"
    assert time.monotonic() - began < 10


def test_an_error_that_changes_nothing_is_no_pair(prompt: Prompt) -> None:
    row = Row("p", prompt, "entity")
    dropped = pair_of(row, TRUTH)
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "pair_identical"
    assert isinstance(pair_of(row, WRONG), PreferencePair)
