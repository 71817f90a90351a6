"""POVID's injection against a real HTTP server on this machine: what is asked, what is taken, what is refused."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import gc
import json
import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors import chat_endpoint
from actors.chat_endpoint import ChatEndpoint, retry_after_s
from actors.injection import EndpointInjector, Injection, Row, rows_of
from actors.injection_prompt import render_messages
from actors.injection_reply import read_reply
from actors.reply_cache import Reply
from common.errors import UserError
from common.images import ImageStore
from common.povid_config import KINDS, EndpointConfig, PovidConfig
from common.records import Dropped, ImageRef, Message, Part, PreferencePair, Prompt
from common.shapes.render import blank
from tests.chat_server import Answer, Asked, ChatServer, completion, refusal

TRUTH = "A man rides a brown horse along the beach at dawn, and a dog"
"""60 characters: with the slack of 40, answers of 10 to 160 characters have a ratio of at most 2."""
WRONG = "A man rides a white horse along the beach at dawn, and a dog"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_endpoint, "BACKOFF_S", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


IMAGES: list[ImageRef] = []


@pytest.fixture(scope="module", autouse=True)
def image(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The one image of every prompt."""
    IMAGES[:] = [ImageStore(tmp_path_factory.mktemp("images")).add(blank())]


def ask(
    id: str = "p", text: str = "Describe the image.", reference: str | None = TRUTH
) -> Prompt:
    return Prompt(
        id,
        (Message("user", (Part("image"), Part("text", text))),),
        tuple(IMAGES),
        reference,
    )


def config(url: str, **changes: Any) -> PovidConfig:
    given = {"max_retries": 2, "timeout_s": 5.0, **changes}
    return PovidConfig(endpoint=EndpointConfig(base_url=url, model="writer", **given))


def inject(
    settings: PovidConfig, cache: Path, prompts: Sequence[Prompt]
) -> tuple[list[Injection], dict[str, Any]]:
    """Every prompt at once; kind `attribute`."""

    async def all_of_them() -> tuple[list[Injection], dict[str, Any]]:
        assert settings.endpoint is not None
        async with ChatEndpoint(settings.endpoint, cache) as endpoint:
            injector = EndpointInjector(settings, endpoint)
            rows = [Row(prompt.id, prompt, "attribute") for prompt in prompts]
            return list(await asyncio.gather(*map(injector, rows))), endpoint.usage()

    return asyncio.run(all_of_them())


def reason(injection: Injection) -> str | None:
    return injection.result.reason if isinstance(injection.result, Dropped) else None


# What is asked.


def test_every_kind_has_its_own_instruction_and_shows_question_and_answer() -> None:
    hostile = replace(
        ask(text="What {{ 7 * 7 }} <b>?"), reference='It\'s {% raw %} & "fine"'
    )
    texts = {
        kind: render_messages(hostile, kind, False)[0]["content"] for kind in KINDS
    }
    assert len(set(texts.values())) == len(KINDS)
    for text in texts.values():
        assert (
            "What {{ 7 * 7 }} <b>?" in text
            and 'It\'s {% raw %} & "fine"' in text
            and "<rewritten>" in text
        )
        assert "do not see it" in text and "{#" not in text and "\n\n\n" not in text


def test_all_turns_are_shown() -> None:
    turns = (("user", "Is it red?"), ("assistant", "Yes."), ("user", "And the other?"))
    talk = Prompt(
        "p",
        tuple(Message(role, (Part("text", text),)) for role, text in turns),
        (),
        "Blue.",
    )  # type: ignore[arg-type]
    shown = render_messages(talk, "reasoning", False)[0]["content"]
    assert "user: Is it red?\nassistant: Yes.\nuser: And the other?" in shown


def test_images_travel_as_data_urls_of_the_file(tmp_path: Path) -> None:
    ref = ImageStore(tmp_path).add(blank())
    shown = replace(ask(), images=(ref,))
    image, text = render_messages(shown, "entity", True)[0]["content"]
    kind, data = image["image_url"]["url"].split(";base64,")
    assert (
        kind == "data:image/png"
        and base64.b64decode(data) == Path(ref.path).read_bytes()
    )
    assert "attached image" in text["text"] and isinstance(
        render_messages(shown, "entity", False)[0]["content"], str
    )


def test_an_image_that_is_gone_drops_its_row_unasked(tmp_path: Path) -> None:
    ref = ImageStore(tmp_path).add(blank())
    Path(ref.path).unlink()
    with ChatServer(lambda asked: completion(WRONG)) as server:
        (injection,), _ = inject(
            config(server.url, send_image=True),
            tmp_path / "c",
            [replace(ask(), images=(ref,))],
        )
        assert reason(injection) == "image_missing" and injection.asked == "no"
        (injection,), _ = inject(
            config(server.url), tmp_path / "c", [replace(ask(), images=())]
        )
        assert reason(injection) == "no_image" and not server.asked


def test_kinds_follow_request_seed_and_id() -> None:
    def drawn(seed: int, text: str, kinds: Sequence[str] = KINDS) -> list[str]:
        settings = PovidConfig(seed=seed, kinds=tuple(kinds))  # type: ignore[arg-type]
        return [
            row.kind
            for number in range(60)
            for row in rows_of(ask(f"p{number}", text), settings)
        ]

    captions = drawn(0, "What do you see in the image?")
    assert set(captions) == {"entity", "attribute", "relation"}
    assert (
        captions
        == drawn(0, "Describe the image in detail.")
        != drawn(1, "Describe the image in detail.")
    )
    assert set(drawn(0, "Why is the man wearing a helmet?")) == {"reasoning"}
    assert set(drawn(0, "Why is the man wearing a helmet?", ("entity",))) == {"entity"}
    every = rows_of(ask("p"), PovidConfig(every_kind=True))
    assert [row.id for row in every] == ["p/entity", "p/attribute", "p/relation"]


# What is taken from a reply.


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (WRONG, WRONG),
        (f"<rewritten>\n{WRONG}\n</rewritten>", WRONG),
        (
            f"The tags are <rewritten>…</rewritten>.\n<rewritten>{WRONG}</rewritten> Done.",
            WRONG,
        ),
        (f"<think>The true answer says brown.</think> {WRONG}", WRONG),
    ],
)
def test_the_answer_is_found(reply: str, expected: str) -> None:
    assert read_reply("p", reply, TRUTH, 2.0) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<rewritten> </rewritten>", "rewrite_empty"),
        (
            "I'm sorry, but I can't help with writing false descriptions.",
            "rewrite_refused",
        ),
        (
            "As an AI language model, I do not write false descriptions.",
            "rewrite_refused",
        ),
        (f"<rewritten>{WRONG}", "rewrite_leftover"),
        (f"Here is the rewritten answer: {WRONG}", "rewrite_leftover"),
        (f"{WRONG} <image>", "rewrite_leftover"),
        (f"{WRONG}<|im_end|>", "rewrite_leftover"),
        (f"```\n{WRONG}\n```", "rewrite_leftover"),
        (TRUTH.upper() + "!", "rewrite_unchanged"),
    ],
)
def test_what_is_no_rejected_answer_has_a_reason(reply: str, expected: str) -> None:
    result = read_reply("p", reply, TRUTH, 2.0)
    assert isinstance(result, Dropped) and (result.id, result.reason) == ("p", expected)


@pytest.mark.parametrize(
    ("length", "taken"), [(9, False), (10, True), (160, True), (161, False)]
)
def test_length_limit(length: int, taken: bool) -> None:
    """(n + 40) / (60 + 40) is within ½ and 2 for n from 10 to 160."""
    result = read_reply("p", "x" * length, TRUTH, 2.0)
    assert isinstance(result, str) if taken else result.reason == "rewrite_length"  # type: ignore[union-attr]


def test_an_answer_of_one_word_may_become_another_or_a_short_sentence() -> None:
    """(4 + 40) · 2 - 40 = 48 characters."""
    for wrong, taken in (
        ("No.", True),
        ("No, the bench is empty.", True),
        ("No, " + "x" * 45, False),
    ):
        assert isinstance(read_reply("p", wrong, "Yes.", 2.0), str) is taken


def test_what_the_true_answer_does_itself_is_no_fault() -> None:
    assert isinstance(
        read_reply(
            "p", "I cannot tell the breed of the cat.", "I cannot tell the breed.", 2.0
        ),
        str,
    )
    assert isinstance(
        read_reply("p", "Use ```ls -a``` there.", "Use ```ls -l``` there.", 2.0), str
    )


# Rows and replies through the endpoint.


def test_a_pair_and_what_it_cost(tmp_path: Path) -> None:
    """Two replies of 10 + 5 tokens at 2 and 4 per million: (20 · 2 + 10 · 4) / 10⁶."""
    with ChatServer(lambda asked: completion(WRONG)) as server:
        settings = config(server.url, price_in=2.0, price_out=4.0, temperature=0.3)
        injections, usage = inject(
            settings, tmp_path / "c", [ask("a"), ask("b", text="Describe it.")]
        )
        body = server.asked[0].body
    pair = injections[0].result
    assert isinstance(pair, PreferencePair) and (pair.id, pair.source) == (
        "povid/a",
        "povid",
    )
    assert (pair.chosen.text, pair.rejected.text, pair.weight_version) == (
        TRUTH,
        WRONG,
        None,
    )
    assert (body["model"], body["temperature"], body["max_tokens"]) == (
        "writer",
        0.3,
        1024,
    )
    assert (usage["num_prompt_tokens"], usage["num_completion_tokens"]) == (20, 10)
    assert usage["cost"] == pytest.approx(8e-5)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (None, "no_reference"),
        (" \n", "no_reference"),
        ("x" * 10_000_000, "answer_too_long"),
    ],
)
def test_rows_that_are_not_worth_asking_are_not_asked(
    reference: str | None, expected: str, tmp_path: Path
) -> None:
    with ChatServer(lambda asked: completion(WRONG)) as server:
        (injection,), _ = inject(
            config(server.url), tmp_path / "c", [ask(reference=reference)]
        )
        assert reason(injection) == expected and not server.asked
        (injection,), _ = inject(
            config(server.url), tmp_path / "c", [ask(text="x" * 20_001)]
        )
        assert reason(injection) == "question_too_long" and not server.asked


def test_rate_limits_and_errors_are_retried(tmp_path: Path) -> None:
    script = [refusal(429), refusal(503), completion(WRONG)]
    with ChatServer(lambda asked: script[asked.number - 1]) as server:
        (injection,), _ = inject(config(server.url), tmp_path / "c", [ask()])
        assert isinstance(injection.result, PreferencePair) and len(server.asked) == 3


def test_retry_after_is_honoured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [refusal(429, **{"Retry-After": "0.4"}), completion(WRONG)]
    with ChatServer(lambda asked: script[asked.number - 1]) as server:
        began = time.monotonic()
        inject(config(server.url), tmp_path / "c", [ask()])
        assert time.monotonic() - began >= 0.4
    monkeypatch.setattr(chat_endpoint, "MAX_RETRY_AFTER_S", 0.01)
    script[0] = refusal(429, **{"Retry-After": "86400"})
    with ChatServer(lambda asked: script[asked.number - 1]) as server:
        (injection,), _ = inject(config(server.url), tmp_path / "d", [ask()])
        assert isinstance(injection.result, PreferencePair)


def test_retry_after_header() -> None:
    soon = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 58 <= retry_after_s(soon) <= 60
    assert retry_after_s("1.5") == 1.5
    past = email.utils.formatdate(0)
    assert [
        retry_after_s(header) for header in (None, "soon", "-3", "inf", "nan", past)
    ] == [0.0] * 6


@pytest.mark.parametrize(
    ("answer", "expected", "num_requests"),
    [
        pytest.param(refusal(429), "endpoint_rate_limited", 3, id="429"),
        pytest.param(refusal(500), "endpoint_error", 3, id="500"),
        pytest.param(Answer(b"<html>", 502), "endpoint_error", 3, id="502 of a proxy"),
        pytest.param(refusal(400, "context too long"), "endpoint_refused", 1, id="400"),
        pytest.param(refusal(404, "no such model"), "endpoint_denied", 1, id="404"),
        pytest.param(refusal(413), "endpoint_refused", 1, id="413"),
        pytest.param(
            Answer(b"<html>hello</html>"), "endpoint_garbage", 1, id="no JSON"
        ),
        pytest.param(Answer(b"\xff\xfe\x00"), "endpoint_garbage", 1, id="no text"),
        pytest.param(
            Answer(b"[" * 100_000), "endpoint_garbage", 1, id="JSON without end"
        ),
        pytest.param(Answer(b"[]"), "endpoint_garbage", 1, id="a list"),
        pytest.param(Answer(b'{"choices": []}'), "endpoint_garbage", 1, id="no choice"),
        pytest.param(
            Answer(b'{"error": {"message": "x"}}'),
            "endpoint_garbage",
            1,
            id="error under 200",
        ),
        pytest.param(
            Answer(b'{"choices": [{"message": {"content": [1]}}]}'),
            "endpoint_garbage",
            1,
            id="no string",
        ),
        pytest.param(
            Answer(b'{"choices": [{"message": {"content": ""}}], "usage": 3}'),
            "endpoint_garbage",
            1,
            id="u",
        ),
        pytest.param(
            Answer(b'{"choices": [{"message": {"content": "\\ud800"}}]}'),
            "endpoint_garbage",
            1,
            id="half",
        ),
        pytest.param(Answer(b""), "endpoint_garbage", 1, id="no body"),
        pytest.param(completion(None), "endpoint_empty", 1, id="null"),
        pytest.param(completion(" \n"), "endpoint_empty", 1, id="blank"),
        pytest.param(completion(WRONG, finish="length"), "cut_off", 1, id="cut off"),
        pytest.param(
            completion(None, finish="length"), "cut_off", 1, id="spent on thinking"
        ),
    ],
)
def test_what_fails_for_good_is_dropped_under_its_reason(
    answer: Answer, expected: str, num_requests: int, tmp_path: Path
) -> None:
    with ChatServer(lambda asked: answer) as server:
        (injection,), _ = inject(config(server.url), tmp_path / "c", [ask()])
        assert (
            reason(injection) == expected
            and len(server.asked) == num_requests
            and injection.asked == "failed"
        )


def test_what_was_paid_for_is_counted_although_it_is_empty(tmp_path: Path) -> None:
    with ChatServer(lambda asked: completion(None)) as server:
        for expected in ("failed", "cache"):
            (injection,), usage = inject(config(server.url), tmp_path / "c", [ask()])
            assert reason(injection) == "endpoint_empty" and injection.asked == expected
        assert usage["num_prompt_tokens"] == 10 and len(server.asked) == 1


def test_what_an_endpoint_says_cannot_reach_the_terminal_s_controls(
    tmp_path: Path,
) -> None:
    with ChatServer(lambda asked: refusal(400, "\x1b[2Jgone \ud800\nnext")) as server:
        (injection,), _ = inject(config(server.url), tmp_path / "c", [ask()])
    assert (
        isinstance(injection.result, Dropped) and injection.result.detail.isprintable()
    )
    assert "gone" in injection.result.detail


@pytest.mark.parametrize(
    "silence", [Answer(delay_s=30.0), Answer(trickle=True)], ids=["hangs", "trickles"]
)
def test_silence_ends_with_the_timeout(silence: Answer, tmp_path: Path) -> None:
    """At first nothing is worth waiting for twice; an endpoint that has answered before gets its retries."""
    with ChatServer(lambda asked: silence) as server:
        began = time.monotonic()
        (injection,), _ = inject(
            config(server.url, timeout_s=1.0), tmp_path / "c", [ask()]
        )
        assert (
            reason(injection) == "endpoint_timeout"
            and injection.asked == "failed"
            and len(server.asked) == 1
        )
        assert 1.0 <= time.monotonic() - began < 10
    script = [refusal(500), silence, completion(WRONG)]
    with ChatServer(lambda asked: script[asked.number - 1]) as server:
        (injection,), _ = inject(
            config(server.url, timeout_s=1.0), tmp_path / "d", [ask()]
        )
        assert isinstance(injection.result, PreferencePair)


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        began = time.monotonic()
        (injection,), _ = inject(config(url, max_retries=50), tmp_path / "c", [ask()])
    assert reason(injection) == "endpoint_unreachable" and time.monotonic() - began < 10


# The cache.


def test_nothing_is_asked_twice_at_once_later_or_after_a_torn_line(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "c"
    with ChatServer(lambda asked: completion(WRONG, delay_s=0.1)) as server:
        injections, usage = inject(
            config(server.url), cache, [ask("a"), ask("b"), ask("c")]
        )
        assert sorted(injection.asked for injection in injections) == [
            "answered",
            "cache",
            "cache",
        ]
        assert len(server.asked) == usage["num_replies"] == 1
        with cache.open("a") as file:
            file.write(
                '7\n{"event": "reply", "time": 0}\n{"event": "reply", "key": "ab'
            )
        for _ in range(2):
            (injection,), usage = inject(config(server.url), cache, [ask("d")])
            assert injection.asked == "cache" and isinstance(
                injection.result, PreferencePair
            )
        assert len(server.asked) == usage["num_replies"] == 1
        inject(config(server.url, temperature=0.5), cache, [ask()])
        inject(config(server.url), cache, [ask(reference=TRUTH + ".")])
        assert len(server.asked) == 3


def test_a_failure_is_no_reply_to_keep(tmp_path: Path) -> None:
    script = [refusal(400), completion(WRONG)]
    with ChatServer(lambda asked: script[asked.number - 1]) as server:
        for expected in ("endpoint_refused", None):
            (injection,), _ = inject(config(server.url), tmp_path / "c", [ask()])
            assert reason(injection) == expected


def test_a_failure_that_nobody_waits_for_any_more_is_silent(tmp_path: Path) -> None:
    said: list[Any] = []

    async def call(url: str) -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: said.append(context)
        )
        async with ChatEndpoint(
            EndpointConfig(base_url=url, model="m"), tmp_path / "c"
        ) as endpoint:
            asker = asyncio.create_task(
                endpoint.ask([{"role": "user", "content": "?"}])
            )
            await asyncio.sleep(0.05)
            asker.cancel()
            while endpoint._pending:
                await asyncio.sleep(0.01)
        gc.collect()

    with ChatServer(lambda asked: replace(refusal(400), delay_s=0.3)) as server:
        asyncio.run(call(server.url))
    assert not said


def test_replies_without_usage_are_counted_as_such(tmp_path: Path) -> None:
    with ChatServer(lambda asked: completion(WRONG, usage=False)) as server:
        _, usage = inject(
            config(server.url, price_in=1, price_out=1), tmp_path / "c", [ask()]
        )
    assert usage["num_replies_without_usage"] == 1 and usage["cost"] == 0


# The key.


def test_the_key_is_sent_and_nowhere_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The server does its worst: it echoes the key in an error, in a reply, and in a reply with JSON escapes."""
    secret = "sk-secret-1234567890"
    monkeypatch.setenv("WRITER_KEY", f" {secret}\n")
    caplog.set_level(logging.DEBUG)

    def echo(asked: Asked) -> Answer:
        if "Question 1" in asked.text:
            return refusal(401, f"bad key {secret}")
        answer = completion(f"{WRONG} {secret}")
        return (
            replace(answer, body=answer.body.replace(b"sk-", b"\\u0073k-"))
            if "Question 3" in asked.text
            else answer
        )

    with ChatServer(echo) as server:
        settings = config(server.url, api_key_env="WRITER_KEY")
        injections, _ = inject(
            settings, tmp_path / "c", [ask(n, f"Question {n}") for n in "123"]
        )
        assert {asked.headers["authorization"] for asked in server.asked} == {
            f"Bearer {secret}"
        }
    assert [reason(injection) for injection in injections] == [
        "endpoint_denied",
        None,
        None,
    ]
    shown = capfd.readouterr()
    everything = [
        repr(injections),
        caplog.text,
        shown.out,
        shown.err,
        (tmp_path / "c").read_text(),
    ]
    assert "[api key]" in everything[0] and "[api key]" in everything[-1]
    assert not any(secret in text for text in everything)


def test_a_key_that_is_missing_or_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EndpointConfig(
        base_url="http://localhost:1/v1", model="m", api_key_env="WRITER_KEY"
    )
    monkeypatch.delenv("WRITER_KEY", raising=False)
    with pytest.raises(UserError, match="WRITER_KEY"):
        ChatEndpoint(settings, tmp_path / "c")
    monkeypatch.setenv("WRITER_KEY", "schlüssel\nzwei")
    with pytest.raises(UserError) as refused:
        ChatEndpoint(settings, tmp_path / "c")
    assert "schl" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_reply_is_one_line_of_json(tmp_path: Path) -> None:
    with ChatServer(lambda asked: completion(f"{WRONG}\n\u2028")) as server:
        inject(config(server.url), tmp_path / "c", [ask()])
    (line,) = (tmp_path / "c").read_text().split("\n")[:-1]
    fields = json.loads(line)
    assert Reply(
        *(
            fields[name]
            for name in ("text", "cut_off", "prompt_tokens", "completion_tokens")
        )
    ) == Reply(f"{WRONG}\n\u2028", False, 10, 5)
