"""`python -m cluster.generate povid` when rows fail, when the endpoint does, and when the command line is wrong."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from actors.povid.injection import Injection
from actors.povid.stats import note_of
from cluster.generate import main
from common.data.datasets import PAIRS, write_prompts
from common.records import Dropped, Prompt
from tests.chat_server import Answer, Asked, completion, refusal
from tests.cluster.povid.sets import (
    answering,
    from_file,
    rewrite,
    rows_of,
    stats_of,
    true_answer,
    words,
)


def test_every_failure_of_a_single_row_is_counted_and_none_is_fatal(
    tmp_path: Path, captions: list[Prompt]
) -> None:
    """Every third row fails in one of ten ways; the others make pairs."""
    ways: dict[str, Answer] = {
        "endpoint_rate_limited": refusal(429),
        "endpoint_error": refusal(500),
        "endpoint_refused": refusal(400),
        "endpoint_garbage": Answer(b"{"),
        "endpoint_empty": completion(""),
        "endpoint_timeout": Answer(delay_s=30.0),
        "rewrite_refused": completion("I'm sorry, I can't do that."),
        "rewrite_leftover": completion("<rewritten>half"),
        "rewrite_length": completion("word " * 1000),
        "cut_off": completion("There is", finish="length"),
    }
    answers: dict[str | None, Answer] = {}
    for prompt, failure in zip(captions[2::3], ways.values(), strict=True):
        answers[prompt.reference] = failure

    def script(asked: Asked) -> Answer:
        return answers.get(true_answer(asked)) or rewrite(asked)

    write_prompts(tmp_path / "prompts", captions)
    with answering(script) as server:
        options = f"{from_file(tmp_path / 'prompts')} --timeout 1.5 --concurrency 4"
        assert main(words(tmp_path / "a", server.url, options)) == 0
    stats = stats_of(tmp_path / "a")
    assert stats["dropped"] == dict.fromkeys(sorted(ways), 1)
    assert stats["num_pairs"] == 20
    assert sum(stats["dropped_per_kind"].values()) == 10
    # Neither of 429, 500, 400, garbage and silence is a reply.
    assert stats["num_replies"] == 30 - 5


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(refusal(400), "endpoint_refused", id="400"),
        pytest.param(Answer(b"{"), "endpoint_garbage", id="garbage"),
        pytest.param(completion(""), "endpoint_empty", id="empty"),
    ],
)
def test_more_rows_than_the_gate_holds_may_fail_side_by_side(
    answer: Answer, reason: str, tmp_path: Path, captions: list[Prompt]
) -> None:
    failing = {prompt.reference for prompt in captions[5:25]}

    def script(asked: Asked) -> Answer:
        is_failing = true_answer(asked) in failing
        return answer if is_failing else rewrite(asked)

    write_prompts(tmp_path / "prompts", captions)
    with answering(script) as server:
        options = f"{from_file(tmp_path / 'prompts')} --concurrency 1"
        assert main(words(tmp_path / "a", server.url, options)) == 0
    stats = stats_of(tmp_path / "a")
    assert stats["dropped"] == {reason: 20}
    assert stats["num_pairs"] == 10


def test_quick_refusals_do_not_outrun_slow_replies(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        if asked.number % 4 == 0:
            return replace(rewrite(asked), delay_s=0.5)
        return refusal(400)

    with answering(script) as server:
        line = words(tmp_path / "a", server.url, "--count 80 --concurrency 16")
        assert main(line) == 0
    stats = stats_of(tmp_path / "a")
    assert stats["dropped"] == {"endpoint_refused": 80 - stats["num_pairs"]}


def test_rows_that_were_never_asked_about_do_not_show_that_the_endpoint_works(
    tmp_path: Path, captions: list[Prompt], capsys: pytest.CaptureFixture[str]
) -> None:
    never_asked = [replace(prompt, reference=None) for prompt in captions[:5]]
    write_prompts(tmp_path / "prompts", [*never_asked, *captions[5:]])
    with answering(lambda asked: refusal(400, "max_tokens is not supported")) as server:
        line = words(tmp_path / "a", server.url, from_file(tmp_path / "prompts"))
        for _ in range(2):
            assert main(line) == 2
            assert "16 failures in a row" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "reason", "at_most"),
    [
        pytest.param(Answer(delay_s=30.0), "endpoint_timeout", 8, id="silence"),
        pytest.param(refusal(401, "who are you"), "endpoint_denied", 20, id="401"),
        pytest.param(refusal(500), "endpoint_error", 40, id="500"),
        pytest.param(Answer(b"hello"), "endpoint_garbage", 20, id="no chat endpoint"),
    ],
)
def test_an_endpoint_that_never_works_ends_the_job_in_one_line(
    failure: Answer,
    reason: str,
    at_most: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with answering(lambda asked: failure) as server:
        began = time.monotonic()
        options = "--count 100 --concurrency 4 --timeout 1"
        line = words(tmp_path / "a", server.url, options)
        assert main(line) == 2
        assert time.monotonic() - began < 15
        assert len(server.asked) <= at_most
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: --endpoint: expected replies")
        assert reason in error
        assert not (tmp_path / "a" / PAIRS).exists()
        server.script = rewrite
        # Nothing was made yet, so that what was wrong can be corrected in place.
        assert main([*line, "--model-name", "another", "--timeout", "30"]) == 0
    assert stats_of(tmp_path / "a")["num_pairs"] == 100


def test_nobody_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        began = time.monotonic()
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        assert main(words(tmp_path / "a", url, "--count 1 --retries 20")) == 2
    assert time.monotonic() - began < 15
    assert "endpoint_unreachable" in capsys.readouterr().err


@pytest.mark.parametrize("status", [503, 429, 401])
def test_an_endpoint_that_dies_on_the_way_loses_no_row(
    status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Slow, so that good replies on their way come first.
    gone = replace(refusal(status), delay_s=0.2)

    def dying(asked: Asked) -> Answer:
        return rewrite(asked) if asked.number <= 20 else gone

    with answering(dying) as server:
        line = words(tmp_path / "a", server.url, "--count 60 --concurrency 4")
        assert main(line) == 2
        assert "16 failures in a row" in capsys.readouterr().err
        assert not (tmp_path / "a" / PAIRS).exists()
        num_asked = len(server.asked)
        server.script = rewrite
        assert main(line) == 0
        # The 20 rows that were answered are not asked about again.
        assert len(server.asked) - num_asked <= 40
    stats = stats_of(tmp_path / "a")
    assert stats["num_pairs"] == 60
    assert not stats["dropped"]


def test_the_last_row_may_fail_alone(tmp_path: Path, captions: list[Prompt]) -> None:
    write_prompts(tmp_path / "prompts", captions[:5])
    last = captions[4].reference

    def script(asked: Asked) -> Answer:
        is_last = true_answer(asked) == last
        return refusal(400) if is_last else rewrite(asked)

    with answering(script) as server:
        options = f"{from_file(tmp_path / 'prompts')} --concurrency 1"
        assert main(words(tmp_path / "a", server.url, options)) == 0
    assert stats_of(tmp_path / "a")["dropped"] == {"endpoint_refused": 1}


def test_concurrency_is_reached_and_kept(tmp_path: Path) -> None:
    def slow(asked: Asked) -> Answer:
        return replace(rewrite(asked), delay_s=0.05)

    with answering(slow) as server:
        line = words(tmp_path / "a", server.url, "--count 40 --concurrency 6")
        assert main(line) == 0
        assert server.most_in_flight == 6


def test_the_key_stays_out_of_the_folder_and_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "sk-very-secret-0987654321"
    monkeypatch.setenv("OPENAI_API_KEY", secret)

    def echo(asked: Asked) -> Answer:
        if asked.number % 3 == 0:
            return refusal(400, f"your key is {secret}")
        return completion(f"A dog says {secret}.")

    out = tmp_path / "a"
    with answering(echo) as server:
        assert main(words(out, server.url, "--count 12")) == 0
        for asked in server.asked:
            assert asked.headers["authorization"] == f"Bearer {secret}"
    shown = capfd.readouterr()
    assert secret not in shown.out + shown.err
    assert "[api key]" in shown.out
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 4
    for path in files:
        assert secret.encode() not in path.read_bytes()
    # Parquet is compressed: its texts are looked at as well.
    for row in rows_of(out):
        assert secret not in repr(row)


ENDPOINT = ("--endpoint", "http://x/v1", "--model-name", "m")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([], "--corrupter rules"),
        (["--corrupter", "rules", "--endpoint", "http://x/v1"], "--corrupter rules"),
        (["--endpoint", "http://x/v1"], "--model-name"),
        (
            ["--endpoint", "localhost:8000", "--model-name", "m"],
            "http://localhost:8000/v1",
        ),
        (["--endpoint", "http://me:secret@x/v1", "--model-name", "m"], "credentials"),
        (["--endpoint", "http://x/v1?key=secret", "--model-name", "m"], "credentials"),
        (["--endpoint", "http://x y/v1", "--model-name", "m"], "base_url"),
        (["--endpoint", "http://x:99999/v1", "--model-name", "m"], "base_url"),
        (["--corrupter", "rules", "--kinds", "entity,colour"], "colour"),
        (["--corrupter", "rules", "--kinds", ","], "kinds"),
        (["--corrupter", "rules", "--count", "0"], "--count"),
        (["--corrupter", "rules", "--prompts", "/nowhere"], "data.prompts"),
        (
            ["--corrupter", "rules", "--rollout.num_workers", "2"],
            "--rollout.num_workers",
        ),
        ([*ENDPOINT, "--concurrency", "0"], "concurrency"),
        ([*ENDPOINT, "--api-key-env", "NOT_SET"], "NOT_SET"),
    ],
)
def test_refusals_are_one_line_with_status_2(
    line: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["povid", "--out", str(tmp_path / "out"), *line]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    assert said in message
    assert "secret" not in message


def test_notes_hold_no_more_than_they_need() -> None:
    dropped = Dropped("p", "endpoint_garbage", "x" * 10_000)
    note = note_of(Injection("p", "entity", dropped, "failed"))
    assert len(json.dumps(note)) < 400
