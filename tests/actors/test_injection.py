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

from actors.povid.injection import EndpointInjector, Injection, Row, rows_of
from actors.povid.prompt import render_messages
from actors.povid.reply import read_reply
from common.config.povid import KINDS, EndpointConfig, ErrorKind, PovidConfig
from common.data.images import ImageStore
from common.endpoint import chat_endpoint
from common.endpoint.chat_endpoint import ChatEndpoint, retry_after_s
from common.endpoint.reply_cache import ChatReply, ReplyCache
from common.errors import UserError
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


@pytest.fixture(scope="module")
def image(store: ImageStore) -> ImageRef:
    return store.add(blank())


@pytest.fixture(scope="module")
def prompt(image: ImageRef) -> Prompt:
    """A request for a caption."""
    return make_prompt("Describe the image.", image)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where the replies of a test are kept."""
    return tmp_path / "replies"


def make_prompt(question: str, *images: ImageRef) -> Prompt:
    message = Message("user", (Part("image"), Part("text", question)))
    return Prompt("p", (message,), images, TRUTH)


def config(url: str, **changes: Any) -> PovidConfig:
    settings = {"max_retries": 2, "timeout_s": 5.0, **changes}
    endpoint = EndpointConfig(
        base_url=url,
        model="writer",
        **settings,
    )
    return PovidConfig(endpoint=endpoint)


def inject_all(
    settings: PovidConfig,
    cache: Path,
    prompts: Sequence[Prompt],
) -> tuple[list[Injection], dict[str, Any]]:
    """Injections of kind `attribute`, all prompts at once, and the endpoint's usage."""
    assert settings.endpoint is not None
    endpoint_config = settings.endpoint
    rows = [Row(prompt.id, prompt, "attribute") for prompt in prompts]

    async def all_of_them() -> tuple[list[Injection], dict[str, Any]]:
        async with ChatEndpoint(endpoint_config, cache) as endpoint:
            injector = EndpointInjector(settings, endpoint)
            injections = await asyncio.gather(*[injector(row) for row in rows])
            return injections, endpoint.usage()

    return asyncio.run(all_of_them())


def inject(
    settings: PovidConfig,
    cache: Path,
    prompt: Prompt,
) -> Injection:
    (injection,), _ = inject_all(settings, cache, [prompt])
    return injection


def reason_of(injection: Injection) -> str | None:
    """Why a row gave no pair; None if it gave one."""
    if isinstance(injection.result, Dropped):
        return injection.result.reason
    return None


def one_after_the_other(answers: Sequence[Answer]) -> ChatServer:
    """A server that gives these answers in turn."""
    return ChatServer(lambda asked: answers[asked.number - 1])


def always(answer: Answer) -> ChatServer:
    return ChatServer(lambda asked: answer)


# What is asked.


def test_every_kind_has_its_own_instruction_and_shows_question_and_answer(
    prompt: Prompt,
) -> None:
    question = "What {{ 7 * 7 }} <b>?"
    answer = 'It\'s {% raw %} & "fine"'
    hostile = replace(make_prompt(question), reference=answer)
    texts = set()
    for kind in KINDS:
        (message,) = render_messages(
            hostile,
            kind,
            send_image=False,
        )
        text = message["content"]
        assert question in text
        assert answer in text
        assert "<rewritten>" in text
        # The instruction for models without the image.
        assert "do not see it" in text
        # No leftover of the template language.
        assert "{#" not in text
        assert "\n\n\n" not in text
        texts.add(text)
    assert len(texts) == len(KINDS)


def test_all_turns_are_shown() -> None:
    messages = (
        Message("user", (Part("text", "Is it red?"),)),
        Message("assistant", (Part("text", "Yes."),)),
        Message("user", (Part("text", "And the other?"),)),
    )
    conversation = Prompt("p", messages, (), "Blue.")
    (message,) = render_messages(conversation, "reasoning", send_image=False)
    expected = "user: Is it red?\nassistant: Yes.\nuser: And the other?"
    assert expected in message["content"]


def test_images_travel_as_data_urls_of_the_file(
    prompt: Prompt,
    image: ImageRef,
) -> None:
    (message,) = render_messages(prompt, "entity", send_image=True)
    shown, text = message["content"]
    kind, data = shown["image_url"]["url"].split(";base64,")
    assert kind == "data:image/png"
    assert base64.b64decode(data) == Path(image.path).read_bytes()
    assert "attached image" in text["text"]
    (message,) = render_messages(prompt, "entity", send_image=False)
    assert isinstance(message["content"], str)


def test_an_image_that_is_gone_drops_its_row_unasked(
    prompt: Prompt,
    tmp_path: Path,
    cache: Path,
) -> None:
    gone = ImageStore(tmp_path).add(blank())
    # After it was stored, as when a data set has moved.
    Path(gone.path).unlink()
    with always(completion(WRONG)) as server:
        with_image = config(server.url, send_image=True)
        injection = inject(with_image, cache, replace(prompt, images=(gone,)))
        assert reason_of(injection) == "image_missing"
        assert injection.asked == "no"
        without_image = replace(prompt, images=())
        injection = inject(config(server.url), cache, without_image)
        assert reason_of(injection) == "no_image"
        assert not server.asked


def drawn_kinds(
    seed: int,
    question: str,
    kinds: tuple[ErrorKind, ...] = KINDS,
) -> list[str]:
    """Kinds of 60 prompts with the same question."""
    settings = PovidConfig(seed=seed, kinds=kinds)
    prompt = make_prompt(question)
    drawn: list[str] = []
    for number in range(60):
        rows = rows_of(replace(prompt, id=f"p{number}"), settings)
        drawn.extend(row.kind for row in rows)
    return drawn


def test_kinds_follow_request_seed_and_id(prompt: Prompt) -> None:
    # The wording decides what is a caption.
    captions = drawn_kinds(0, "What do you see in the image?")
    assert set(captions) == {"entity", "attribute", "relation"}
    assert captions == drawn_kinds(0, "Describe the image in detail.")
    assert captions != drawn_kinds(1, "Describe the image in detail.")
    question = "Why is the man wearing a helmet?"
    assert set(drawn_kinds(0, question)) == {"reasoning"}
    assert set(drawn_kinds(0, question, ("entity",))) == {"entity"}
    rows = rows_of(prompt, PovidConfig(every_kind=True))
    assert [row.id for row in rows] == ["p/entity", "p/attribute", "p/relation"]


# What is taken from a reply.


@pytest.mark.parametrize(
    "reply",
    [
        WRONG,
        f"<rewritten>\n{WRONG}\n</rewritten>",
        f"The tags are <rewritten>…</rewritten>.\n<rewritten>{WRONG}</rewritten> Done.",
        f"<think>The true answer says brown.</think> {WRONG}",
    ],
)
def test_the_answer_is_found(reply: str) -> None:
    assert read_reply("p", reply, TRUTH, 2.0) == WRONG


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
        (f"<|im_end|>{WRONG}", "rewrite_leftover"),
        (f"{TRUTH}<|im_end|>", "rewrite_unchanged"),
        ("<|im_end|>", "rewrite_empty"),
        (f"```\n{WRONG}\n```", "rewrite_leftover"),
        (TRUTH.upper() + "!", "rewrite_unchanged"),
    ],
)
def test_what_is_no_rejected_answer_has_a_reason(reply: str, expected: str) -> None:
    result = read_reply("p", reply, TRUTH, 2.0)
    assert isinstance(result, Dropped)
    assert (result.id, result.reason) == ("p", expected)


@pytest.mark.parametrize(
    ("length", "taken"), [(9, False), (10, True), (160, True), (161, False)]
)
def test_length_limit(length: int, taken: bool) -> None:
    """(n + 40) / (60 + 40) is within ½ and 2 for n from 10 to 160."""
    result = read_reply(
        "p",
        "x" * length,
        TRUTH,
        2.0,
    )
    if taken:
        assert isinstance(result, str)
    else:
        assert isinstance(result, Dropped)
        assert result.reason == "rewrite_length"


def test_an_answer_of_one_word_may_become_another_or_a_short_sentence() -> None:
    """(4 + 40) · 2 - 40 = 48 characters."""
    another = read_reply("p", "No.", "Yes.", 2.0)
    assert another == "No."
    sentence = read_reply("p", "No, the bench is empty.", "Yes.", 2.0)
    assert isinstance(sentence, str)
    # 49 characters.
    too_long = read_reply(
        "p",
        "No, " + "x" * 45,
        "Yes.",
        2.0,
    )
    assert isinstance(too_long, Dropped)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("I cannot tell the breed of the cat.", "I cannot tell the breed."),
        ("Use ```ls -a``` there.", "Use ```ls -l``` there."),
    ],
)
def test_what_the_true_answer_does_itself_is_no_fault(answer: str, truth: str) -> None:
    assert read_reply("p", answer, truth, 2.0) == answer


# Rows and replies through the endpoint.


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


# The cache.


def test_equal_questions_at_the_same_time_share_a_reply(
    prompt: Prompt,
    cache: Path,
) -> None:
    prompts = [replace(prompt, id=name) for name in "abc"]
    with always(completion(WRONG, delay_s=0.1)) as server:
        injections, usage = inject_all(config(server.url), cache, prompts)
        asked = sorted(injection.asked for injection in injections)
        # One request, whose reply all three share.
        assert asked == ["answered", "cache", "cache"]
        assert len(server.asked) == usage["num_replies"] == 1


def test_nothing_is_asked_again_later_or_after_a_torn_line(
    prompt: Prompt,
    cache: Path,
) -> None:
    with always(completion(WRONG)) as server:
        settings = config(server.url)
        inject(settings, cache, prompt)
        with cache.open("a") as file:
            # A line of another program, one without a reply, and one that a crash has torn.
            file.write('7\n{"event": "reply", "time": 0}\n')
            file.write('{"event": "reply", "key": "ab')
        for _ in range(2):
            (injection,), usage = inject_all(settings, cache, [prompt])
            assert injection.asked == "cache"
            assert isinstance(injection.result, PreferencePair)
        assert len(server.asked) == usage["num_replies"] == 1

        # Another temperature and another answer are other questions.
        inject(config(server.url, temperature=0.5), cache, prompt)
        inject(settings, cache, replace(prompt, reference=TRUTH + "."))
        assert len(server.asked) == 3


def test_a_failure_is_no_reply_to_keep(prompt: Prompt, cache: Path) -> None:
    with one_after_the_other([refusal(400), completion(WRONG)]) as server:
        injection = inject(config(server.url), cache, prompt)
        assert reason_of(injection) == "endpoint_refused"
        injection = inject(config(server.url), cache, prompt)
        assert reason_of(injection) is None


def test_a_failure_that_nobody_waits_for_any_more_is_silent(cache: Path) -> None:
    reported: list[Any] = []

    async def call(url: str) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        endpoint_config = EndpointConfig(base_url=url, model="m")
        async with ChatEndpoint(endpoint_config, cache) as endpoint:
            question = {"role": "user", "content": "?"}
            asker = asyncio.create_task(endpoint.ask([question]))
            await asyncio.sleep(0.05)
            # Its request goes on, since it may be paid for.
            asker.cancel()
            while endpoint.num_pending:
                await asyncio.sleep(0.01)
        # asyncio reports an exception that nobody has read when its task is collected.
        gc.collect()

    with always(replace(refusal(400), delay_s=0.3)) as server:
        asyncio.run(call(server.url))
    assert not reported


def test_replies_without_usage_are_counted_as_such(prompt: Prompt, cache: Path) -> None:
    with always(completion(WRONG, usage=False)) as server:
        settings = config(
            server.url,
            price_in=1,
            price_out=1,
        )
        _, usage = inject_all(settings, cache, [prompt])
    assert usage["num_replies_without_usage"] == 1
    assert usage["cost"] == 0


# The key.

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


def test_a_reply_is_one_line_of_json(prompt: Prompt, cache: Path) -> None:
    text = f"{WRONG}\n\u2028"
    with always(completion(text)) as server:
        inject(config(server.url), cache, prompt)
    line, nothing = cache.read_text().split("\n")
    assert nothing == ""
    assert json.loads(line)["text"] == text
    (reply,) = ReplyCache(cache).replies.values()
    assert reply == ChatReply(text, False, 10, 5, cached=True)
