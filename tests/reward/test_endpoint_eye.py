"""The eye behind a server, against a real HTTP server on this machine that fails as it is told."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from common import config
from common.config.eyes import Budget, CircuitBreaker
from common.data.images import ImageStore
from common.endpoint import chat_endpoint
from common.endpoint.greeting import greet
from common.errors import Halted, UserError
from common.protocols import JudgeError, Question, Reply
from common.records import Dropped, ImageRef, Prompt, RolloutGroup, Verdict
from reward.eyes.endpoint_eye import EndpointEye
from reward.eyes.factory import EyeTools, make_eye
from reward.judges.prompts import about_images
from reward.judges.seeing import SeeingJudge
from tests.chat_server import Answer, Asked, ChatServer, completion, refusal
from tests.reward.builders import group
from tests.tiny_models import make_prompt

GARBAGE = Answer(b"<html>hello</html>")
CUT = Answer(cut=True)
CUT_IN_THE_MIDDLE = Answer(b'{"choices": [', cut=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_endpoint, "BACKOFF_S", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Prompt:
    return make_prompt(ImageStore(tmp_path_factory.mktemp("images")), 1)


def settings(url: str, **changes: Any) -> config.EndpointEye:
    values: dict[str, Any] = {"max_retries": 2, "timeout_s": 1.0, **changes}
    return config.EndpointEye(base_url=url, model="judge", **values)


def ask(
    eye_settings: config.EndpointEye,
    questions: Sequence[Question],
    replies: Path | None = None,
) -> list[Reply | Dropped]:
    async def ask_all() -> list[Reply | Dropped]:
        eye = EndpointEye(eye_settings, replies)
        try:
            return await eye.ask(questions)
        finally:
            await eye.close()

    return asyncio.run(ask_all())


def always(answer: Answer) -> ChatServer:
    return ChatServer(lambda asked: answer)


def first(answers: Sequence[Answer], last: Answer) -> ChatServer:
    """A server that gives these answers in turn, and then `last` for ever."""
    return ChatServer(
        lambda asked: (
            answers[asked.number - 1] if asked.number <= len(answers) else last
        )
    )


# What is asked.


def test_image_and_text_arrive_and_the_text_comes_back(prompt: Prompt) -> None:
    with always(completion("Better: A")) as server:
        (reply,) = ask(settings(server.url), [Question(prompt, max_tokens=77)])
        assert reply == Reply("Better: A")
        (asked,) = server.asked
    image, text = asked.body["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "Describe the image."}
    assert asked.body["max_tokens"] == 77 and asked.body["temperature"] == 0
    assert "logprobs" not in asked.body


def test_a_key_comes_from_the_environment_and_is_shown_nowhere(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    with always(completion("sk-very-secret")) as server:
        eye = settings(server.url, api_key_env="JUDGE_KEY")
        (reply,) = ask(eye, [Question(prompt)], tmp_path / "replies")
        assert server.asked[0].headers["authorization"] == "Bearer sk-very-secret"
    assert reply == Reply("[api key]")
    assert "secret" not in (tmp_path / "replies").read_text()
    with pytest.raises(UserError, match=r"^reward\.judge\.api_key_env: .*NO_SUCH"):
        ask(settings(server.url, api_key_env="NO_SUCH"), [])


def test_log_probs_of_the_first_word(prompt: Prompt) -> None:
    """Llama's white space comes first; "A" and " a" are one option: 0.25 + 0.25. "tie" is not among the candidates."""
    word = {"A": math.log(0.25), " a": math.log(0.25), "B": math.log(0.125)}
    answer = completion("A", places=[{"▁": 0.0}, word])
    with always(answer) as server:
        (reply,) = ask(settings(server.url), [Question(prompt, ("A", "B", "tie"))])
        assert server.asked[0].body["top_logprobs"] == 20
    assert isinstance(reply, Reply)
    assert reply.logprobs == pytest.approx((math.log(0.5), math.log(0.125), -math.inf))


def test_texts_where_no_option_is_among_the_candidates(prompt: Prompt) -> None:
    with always(completion("Better: B", places=[{"The": -0.1}])) as server:
        (reply,) = ask(settings(server.url), [Question(prompt, ("A", "B"))])
    assert reply == Reply("Better: B")


def test_texts_where_the_server_refuses_log_probs(prompt: Prompt) -> None:
    def script(asked: Asked) -> Answer:
        refuses = "logprobs" in asked.body
        return refusal(400, "no logprobs here") if refuses else completion("B")

    with ChatServer(script) as server:
        eye = settings(server.url, concurrency=1)
        options = ("A", "B")
        other = Question(about_images(prompt, "x", "Another?"), options)
        replies = ask(eye, [Question(prompt, options), other])
        assert replies == [Reply("B"), Reply("B")]
        # It is asked for log-probs once only.
        assert len(server.asked) == 3


# What goes wrong.


@pytest.mark.parametrize(
    "faults",
    [
        [refusal(500), refusal(503)],
        [refusal(429)],
        [CUT],
        [CUT_IN_THE_MIDDLE],
        [Answer(trickle=True)],
        [completion("late", delay_s=3.0)],
    ],
    ids=["5xx", "429", "cut", "cut in the middle", "silence", "slow"],
)
def test_a_fault_that_passes_is_survived(faults: list[Answer], prompt: Prompt) -> None:
    # The server has answered once, so that it is known to be there.
    with first([completion("yes"), *faults], completion("A")) as server:
        questions = [
            Question(about_images(prompt, str(number), f"Question {number}"))
            for number in range(2)
        ]
        eye = settings(server.url, concurrency=1, timeout_s=0.5)
        assert ask(eye, questions) == [Reply("yes"), Reply("A")]


def test_retry_after_is_waited_for(prompt: Prompt) -> None:
    busy = Answer(b"{}", 429, {"Retry-After": "0.6"})
    with first([busy], completion("A")) as server:
        start = time.monotonic()
        assert ask(settings(server.url), [Question(prompt)]) == [Reply("A")]
        assert time.monotonic() - start >= 0.6


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refusal(500), "endpoint_error"),
        (refusal(429), "endpoint_rate_limited"),
        (GARBAGE, "endpoint_garbage"),
        (CUT, "endpoint_unreachable"),
        (Answer(trickle=True), "endpoint_timeout"),
    ],
)
def test_a_fault_that_stays_is_a_judge_error(
    answer: Answer, reason: str, prompt: Prompt
) -> None:
    with always(answer) as server, pytest.raises(JudgeError, match=f"^{reason}: "):
        ask(settings(server.url, timeout_s=0.3), [Question(prompt)])


def test_a_question_that_is_refused_costs_only_itself(prompt: Prompt) -> None:
    def script(asked: Asked) -> Answer:
        return refusal(400, "too long") if "bad" in asked.text else completion("A")

    lost = Prompt("lost", prompt.messages, (ImageRef("0" * 64, "/nowhere.png"),))
    questions = [Question(about_images(prompt, "bad", "bad")), Question(prompt)]
    with ChatServer(script) as server:
        replies = ask(settings(server.url), [*questions, Question(lost)])
    refused, fine, missing = replies
    assert isinstance(refused, Dropped) and refused.reason == "endpoint_refused"
    assert fine == Reply("A")
    assert isinstance(missing, Dropped) and missing.reason == "image_missing"


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_server_that_does_not_know_us_halts_the_run(
    status: int, prompt: Prompt
) -> None:
    with (
        always(refusal(status)) as server,
        pytest.raises(Halted, match=r"^reward\.judge: expected a server that lets us"),
    ):
        ask(settings(server.url), [Question(prompt)])


def test_a_circuit_breaker_spares_a_dead_server(prompt: Prompt) -> None:
    breaker = CircuitBreaker(failures=4, pause_s=30, max_pauses=1)
    questions = [
        Question(about_images(prompt, str(number), f"Question {number}"))
        for number in range(20)
    ]
    with always(refusal(500)) as server:
        eye = settings(server.url, breaker=breaker, max_retries=0, concurrency=2)

        async def ask_for_a_while() -> None:
            async with asyncio.timeout(1.0):
                await EndpointEye(eye).ask(questions)

        with pytest.raises(TimeoutError):
            asyncio.run(ask_for_a_while())
        assert 4 <= len(server.asked) <= 5


# What it costs.


def test_a_used_up_budget_halts_and_paid_replies_stay(
    prompt: Prompt, tmp_path: Path
) -> None:
    questions = [
        Question(about_images(prompt, str(number), f"Question {number}"))
        for number in range(6)
    ]
    replies = tmp_path / "replies"
    with always(completion("A")) as server:
        small = settings(server.url, budget=Budget(calls=4), concurrency=1)
        with pytest.raises(
            Halted, match=r"^reward\.judge\.budget\.calls: .*--resume$"
        ) as error:
            ask(small, questions, replies)
        assert "\n" not in str(error.value)
        assert len(server.asked) == 4
        # A resume asks for what is missing alone.
        large = settings(server.url, budget=Budget(calls=6), concurrency=1)
        assert ask(large, questions, replies) == [Reply("A")] * 6
        assert len(server.asked) == 6
    lines = replies.read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == 6


def test_requests_in_flight_are_limited(prompt: Prompt) -> None:
    questions = [
        Question(about_images(prompt, str(number), f"Question {number}"))
        for number in range(12)
    ]
    with always(completion("A", delay_s=0.02)) as server:
        ask(settings(server.url, concurrency=3), questions)
        assert server.most_in_flight == 3


# At the start.


def test_nobody_at_the_address_is_said_at_the_start() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(
        UserError, match=r"^reward\.judge\.base_url: .*nobody answers there"
    ) as error:
        greet(settings(url), "reward.judge")
    assert url in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_not_taken_is_said_at_the_start(status: int) -> None:
    with always(completion("A")) as server:
        server.models = refusal(status)
        with pytest.raises(UserError, match=rf"api_key_env: .*status {status}"):
            greet(settings(server.url), "reward.judge")


@pytest.mark.parametrize("models", [refusal(404), refusal(500), GARBAGE])
def test_any_other_answer_is_somebody(models: Answer) -> None:
    with always(completion("A")) as server:
        server.models = models
        greet(settings(server.url), "reward.judge")
        assert server.greetings >= 1


def test_a_model_that_is_not_listed_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listed = Answer(b'{"object": "list", "data": [{"id": "other"}]}')
    with always(completion("A")) as server:
        server.models = listed
        greet(settings(server.url), "reward.judge")
    assert "does not list 'judge', but other" in caplog.text


# As a judge.


def judge_of(eye: EndpointEye) -> SeeingJudge:
    asking = config.EndpointJudge(base_url="http://h/v1", model="judge")
    return SeeingJudge("endpoint", asking, eye)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (lambda asked: completion("Better: tie"), (0.5, 0.5)),
        (lambda asked: completion("Better: A"), (0.5, 0.5)),
        (lambda asked: completion("Both are fine."), "unreadable"),
        (lambda asked: completion("Best: ninguna"), "unreadable"),
        (lambda asked: completion(None), "unreadable"),
        (lambda asked: refusal(400, "content policy"), "judge_failed"),
    ],
    ids=["tie", "position", "prose", "another language", "nothing", "refused"],
)
def test_replies_of_a_server_as_verdicts(
    script: Callable[[Asked], Answer],
    expected: tuple[float, ...] | str,
    prompt: Prompt,
) -> None:
    rolled = group(prompt, "a dog", "a cat")

    async def judge(url: str, groups: Sequence[RolloutGroup]) -> Any:
        eye = EndpointEye(settings(url))
        verdicts = await judge_of(eye).judge(groups)
        await eye.close()
        return verdicts[0]

    with ChatServer(script) as server:
        verdict = asyncio.run(judge(server.url, [rolled]))
    if isinstance(expected, str):
        assert isinstance(verdict, Dropped) and verdict.reason == expected
    else:
        assert isinstance(verdict, Verdict) and verdict.scores == expected


def test_what_servers_answer_and_cost_is_summed(prompt: Prompt) -> None:
    """Two eyes of an ensemble: 2 + 1 replies of 10 + 5 tokens; the one with prices costs 2 * (10 * 3 + 5 * 6) / 1e6."""
    tools = EyeTools()

    async def ask_both(url: str) -> dict[str, float]:
        dear = make_eye(settings(url, price_in=3.0, price_out=6.0), tools)
        free = make_eye(settings(url, temperature=0.5), tools)
        await dear.ask([Question(prompt), Question(prompt, max_tokens=7)])
        await free.ask([Question(prompt)])
        usage = tools.usage()
        for eye in (dear, free):
            assert isinstance(eye, EndpointEye)
            await eye.close()
        return usage

    with always(completion("Better: A")) as server:
        usage = asyncio.run(ask_both(server.url))
    assert usage["num_replies"] == 3
    assert usage["num_prompt_tokens"] == 30
    assert usage["num_completion_tokens"] == 15
    assert usage["cost"] == pytest.approx(120e-6)
