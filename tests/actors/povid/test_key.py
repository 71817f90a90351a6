"""The key of an endpoint is sent to it and goes nowhere else."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from common.config.povid import EndpointConfig
from common.endpoint.chat_endpoint import ChatEndpoint
from common.errors import UserError
from common.records import ImageRef
from tests.actors.povid.injecting import (
    WRONG,
    config,
    inject_all,
    make_prompt,
    reason_of,
)
from tests.chat_server import Answer, Asked, ChatServer, completion, refusal

SECRET = "sk-secret-1234567890"


def echo_the_key(asked: Asked) -> Answer:
    """Do the worst: echo the key in an error, in a reply, and in a reply with JSON escapes."""
    if "Question 1" in asked.text:
        return refusal(401, f"bad key {SECRET}")
    answer = completion(f"{WRONG} {SECRET}")
    if "Question 3" in asked.text:
        return replace(answer, body=answer.body.replace(b"sk-", b"\\u0073k-"))
    return answer


def test_the_key_is_sent_and_nowhere_else(
    image: ImageRef,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # White space around a key is a slip of the shell.
    monkeypatch.setenv("WRITER_KEY", f" {SECRET}\n")
    caplog.set_level(logging.DEBUG)
    prompts = []
    for number in "123":
        question = make_prompt(f"Question {number}", image)
        prompts.append(replace(question, id=number))
    with ChatServer(echo_the_key) as server:
        settings = config(server.url, api_key_env="WRITER_KEY")
        injections, _ = inject_all(settings, cache, prompts)
        for asked in server.asked:
            assert asked.headers["authorization"] == f"Bearer {SECRET}"
    denied, *replied = injections
    assert reason_of(denied) == "endpoint_denied"
    for injection in replied:
        assert reason_of(injection) is None

    printed = capfd.readouterr()
    on_disk = cache.read_text()
    assert "[api key]" in repr(injections)
    assert "[api key]" in on_disk
    places = [
        repr(injections),
        caplog.text,
        printed.out,
        printed.err,
        on_disk,
    ]
    for text in places:
        assert SECRET not in text


def test_a_key_that_is_missing_or_no_key(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = EndpointConfig(
        base_url="http://localhost:1/v1",
        model="m",
        api_key_env="WRITER_KEY",
    )
    monkeypatch.delenv("WRITER_KEY", raising=False)
    with pytest.raises(UserError, match="WRITER_KEY"):
        ChatEndpoint(settings, cache)
    monkeypatch.setenv("WRITER_KEY", "schlüssel\nzwei")
    with pytest.raises(UserError) as refused:
        ChatEndpoint(settings, cache)
    assert "schl" not in str(refused.value)
    assert "\n" not in str(refused.value)
