"""`python -m cluster.generate povid` against an HTTP server on this machine, and once against a real `vllm serve`."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.povid.injection import EndpointInjector, Injection, Row
from actors.povid.stats import note_of
from cluster.generate import config_of, main
from cluster.jobs import shards
from cluster.jobs.povid_job import REPLIES, run
from common.config.jobs import PovidJobConfig
from common.data.datasets import (
    PAIRS,
    SPEC,
    STATS,
    read_pairs,
    read_table,
    write_prompts,
)
from common.data.images import ImageStore
from common.data.rows import PAIR_SCHEMA
from common.endpoint import chat_endpoint
from common.records import Dropped, Prompt
from common.shapes.prompts import caption_prompts, question_prompts
from tests.chat_server import Answer, Asked, ChatServer, completion, refusal

TRUE = re.compile(r"True answer:\n(.*?)\n", re.DOTALL)


class Killed(BaseException):
    """Stands for a signal: nothing between it and the process's end may catch it."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_endpoint, "BACKOFF_S", 0.001)
    monkeypatch.setattr(shards, "SHARD_PROMPTS", 4)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def rewrite(asked: Asked) -> Answer:
    """What an obedient model does, the same for the same question."""
    text = true_answer(asked)
    return completion(f"<rewritten>{text} There is a small dog.</rewritten>")


def true_answer(asked: Asked) -> str:
    """The answer that the endpoint is asked to spoil."""
    hit = TRUE.search(asked.text)
    assert hit is not None
    return hit[1]


@contextmanager
def answering(script: Callable[[Asked], Answer] = rewrite) -> Iterator[ChatServer]:
    with ChatServer(script) as server:
        yield server


def words(out: Path, url: str, options: str = "") -> list[str]:
    """The command line of a set that the endpoint at `url` rewrites; `options` as one types them."""
    line = f"--endpoint {url} --model-name writer --retries 1 {options}"
    return ["povid", "--out", str(out), *line.split()]


def from_file(folder: Path) -> str:
    """The option that reads the prompts of a folder."""
    return f"--prompts {folder}"


def stats_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / STATS).read_text()))


def rows_of(out: Path) -> list[Any]:
    return list(read_table(out / PAIRS, PAIR_SCHEMA).to_pylist())


def job(*line: str) -> PovidJobConfig:
    config = config_of(["povid", *line])
    assert isinstance(config, PovidJobConfig)
    return config


@pytest.fixture
def captions(tmp_path: Path) -> list[Prompt]:
    """30 prompts, no two with the same true answer."""
    prompts = caption_prompts("train", 40, 0, ImageStore(tmp_path / "elsewhere"))
    by_answer = {prompt.reference: prompt for prompt in prompts}
    return list(by_answer.values())[:30]


# Rules.

RULES = ("--corrupter", "rules")


def test_rules_make_a_set_of_the_shapes_world(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    assert main(["povid", "--out", str(out), *RULES, "--count", "60"]) == 0
    assert "60 pairs" in capsys.readouterr().out
    for pair in read_pairs(out):
        assert pair.source == "povid"
        assert pair.chosen.text != pair.rejected.text
    stats = stats_of(out)
    assert stats["num_prompts"] == 60
    assert stats["num_rows"] == 60
    assert stats["num_pairs"] + sum(stats["dropped"].values()) == 60
    for kind in ("entity", "attribute", "relation"):
        assert stats["pairs_per_kind"][kind] > 5
    # Rules cost nothing.
    assert "cost" not in stats


def test_a_complete_set_is_left_alone_and_another_is_not_mixed_into_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["povid", "--out", str(tmp_path / "a"), *RULES, "--count"]
    assert main([*line, "6"]) == 0
    assert "already complete" not in capsys.readouterr().out
    assert main([*line, "6"]) == 0
    assert "already complete" in capsys.readouterr().out
    assert main([*line, "7"]) == 2


def test_rows_of_every_sort_are_paired_or_counted(tmp_path: Path) -> None:
    """One row each, but two questions: a caption, no answer, a false one, a 10 MB one, an image that is gone."""
    store = ImageStore(tmp_path / "elsewhere")
    caption, bare, false, huge, gone = caption_prompts("train", 5, 0, store)
    asked = question_prompts("train", 1, 0, store)[:2]
    bad = [
        replace(bare, reference=None),
        replace(false, reference="There is a dog."),
        replace(huge, reference="x" * 10_000_000),
    ]
    folder = tmp_path / "prompts"
    write_prompts(folder, [caption, *asked, *bad, gone])
    digest = gone.images[0].sha256
    (folder / "images" / digest[:2] / f"{digest}.png").unlink()
    out = tmp_path / "a"
    run(job("--out", str(out), *RULES, "--prompts", str(folder)))
    stats = stats_of(out)
    assert stats["num_rows"] == 7
    assert stats["num_pairs"] == 3
    assert stats["pairs_per_kind"]["reasoning"] == 2
    assert stats["dropped"] == {
        "answer_too_long": 1,
        "image_missing": 1,
        "no_reference": 1,
        "not_true": 1,
    }
    assert "There is a dog." in stats["examples"]["not_true"]


def test_every_kind_of_every_prompt_in_order(tmp_path: Path) -> None:
    line = (*RULES, "--count", "8", "--kinds", "relation,entity", "--every-kind")
    run(job("--out", str(tmp_path / "a"), *line))
    ids = [pair.id for pair in read_pairs(tmp_path / "a")]
    expected: list[str] = []
    for index in range(8):
        prompt = f"povid/shapes/train/{index:05d}"
        expected += [f"{prompt}/entity", f"{prompt}/relation"]
    assert ids == expected


# Resuming.


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_and_asks_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captions: list[Prompt]
) -> None:
    write_prompts(tmp_path / "prompts", captions)
    options = f"{from_file(tmp_path / 'prompts')} --price-in 1 --price-out 1"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    original = EndpointInjector.__call__
    num_rows = 0

    async def killed(self: EndpointInjector, row: Row) -> Injection:
        """Dies after the reply is there and before the row is recorded."""
        nonlocal num_rows
        injection = await original(self, row)
        num_rows += 1
        if num_rows in (7, 12, 25):
            raise Killed
        return injection

    with answering() as server:
        assert main(words(whole, server.url, f"{options} --concurrency 1")) == 0
        num_asked = len(server.asked)
        assert num_asked == len(captions)
        monkeypatch.setattr(EndpointInjector, "__call__", killed)
        line = words(parts, server.url, f"{options} --concurrency 5")
        for _ in range(3):
            with pytest.raises(Killed):
                main(line)
            assert not (parts / PAIRS).exists()
        assert main(line) == 0
        asked_by_parts = server.asked[num_asked:]
        texts = {asked.text for asked in asked_by_parts}
        assert len(texts) == num_asked
        # A request in flight when the process died was answered to nobody: at most 4 others at each of 3 deaths.
        assert len(asked_by_parts) - num_asked <= 3 * 4
    assert rows_of(whole) == rows_of(parts)
    stats_of_whole, stats_of_parts = stats_of(whole), stats_of(parts)
    assert stats_of_parts.pop("num_cache_hits") >= 3
    assert stats_of_whole.pop("num_cache_hits") == 0
    assert stats_of_whole == stats_of_parts
    # 10 prompt and 5 completion tokens a reply, at 1 per million.
    assert stats_of_whole["cost"] == pytest.approx(15e-6 * num_asked)


def test_a_complete_set_asks_nothing_even_of_another_address(tmp_path: Path) -> None:
    out = tmp_path / "a"
    nobody = "http://127.0.0.1:9/v1"
    with answering() as server:
        assert main(words(out, server.url, "--count 3")) == 0
        num_asked = len(server.asked)
        assert main(words(out, nobody, "--count 3")) == 0
        assert len(server.asked) == num_asked
        other = words(out, server.url, "--count 3 --temperature 0.1")
        assert main(other) == 2


# Failures.


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


def test_the_spec_says_what_decides_the_content(tmp_path: Path) -> None:
    with answering() as server:
        options = "--count 2 --concurrency 3 --price-in 1"
        main(words(tmp_path / "a", server.url, options))
    text = (tmp_path / "a" / SPEC).read_text()
    spec = json.loads(text)
    for key in (
        "method",
        "model",
        "templates",
        "temperature",
        "kinds",
        "seed",
        "count",
    ):
        assert key in spec
    # Where the endpoint is, and how it is asked, decides nothing.
    for other in ("127.0.0.1", "concurrency", "price"):
        assert other not in text


# A real endpoint.

SERVE = """--model common/shapes/policy --served-model-name tiny --host 127.0.0.1 --dtype float32 --enforce-eager
--max-model-len 4096 --max-num-seqs 8 --kv-cache-memory-bytes 67108864 --skip-mm-profiling --disable-log-stats"""
SERVE_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # the instructions are longer than anything this policy was trained on
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCHDYNAMO_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def vllm_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The shipped tiny policy behind vLLM's own server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        *SERVE.split(),
        "--port",
        str(port),
    ]
    command += ["--limit-mm-per-prompt", '{"image": 1}']
    environment = {**os.environ, **SERVE_ENVIRONMENT}
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(600):
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                direct.open(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.25)
        else:
            pytest.fail(f"no answer: {log.read_text()[-3000:]}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.mark.real
def test_a_real_vllm_serve_of_the_tiny_policy(
    vllm_serve: str, tmp_path: Path, captions: list[Prompt]
) -> None:
    """Plumbing only: the policy cannot follow an instruction. With images, and with text alone."""
    write_prompts(tmp_path / "prompts", captions[:6])
    options = (
        f"{from_file(tmp_path / 'prompts')} --max-tokens 60 "
        "--price-in 1 --price-out 2 --model-name tiny"
    )
    text, image, again = tmp_path / "text", tmp_path / "image", tmp_path / "again"
    for out, flag in ((text, ""), (image, "--send-image")):
        assert main(words(out, vllm_serve, f"{options} {flag}")) == 0
        check_real_stats(stats_of(out))
    num_with_image = stats_of(image)["num_prompt_tokens"]
    assert num_with_image > stats_of(text)["num_prompt_tokens"]

    # Without its pairs but with its replies a set is made again with nobody to ask.
    again.mkdir()
    shutil.copy(text / REPLIES, again / REPLIES)
    assert main(words(again, "http://127.0.0.1:9/v1", options)) == 0
    assert rejected_texts(again) == rejected_texts(text)
    assert stats_of(again)["num_cache_hits"] == 6


def check_real_stats(stats: dict[str, Any]) -> None:
    """Six rows, each with a reply and its tokens, and no failure but empty answers."""
    assert stats["num_rows"] == 6
    assert stats["num_pairs"] + sum(stats["dropped"].values()) == 6
    for reason in stats["dropped"]:
        assert reason == "endpoint_empty" or not reason.startswith("endpoint")
    assert stats["num_replies"] == 6
    assert stats["num_replies_without_usage"] == 0
    # At most 60 tokens a reply; the instructions take more than 100.
    assert 0 < stats["num_completion_tokens"] <= 6 * 60
    assert stats["num_prompt_tokens"] > 6 * 100
    spent = stats["num_prompt_tokens"] + 2 * stats["num_completion_tokens"]
    assert stats["cost"] == pytest.approx(spent / 1e6)


def rejected_texts(out: Path) -> dict[str, str]:
    return {pair.id: pair.rejected.text for pair in read_pairs(out)}


def test_notes_hold_no_more_than_they_need() -> None:
    dropped = Dropped("p", "endpoint_garbage", "x" * 10_000)
    note = note_of(Injection("p", "entity", dropped, "failed"))
    assert len(json.dumps(note)) < 400


def test_chosen_is_the_true_answer_untouched(
    tmp_path: Path, captions: list[Prompt]
) -> None:
    prompts = captions[:4]
    write_prompts(tmp_path / "prompts", prompts)
    with answering() as server:
        line = words(tmp_path / "a", server.url, from_file(tmp_path / "prompts"))
        assert main(line) == 0
    pairs = read_pairs(tmp_path / "a")
    for pair, prompt in zip(pairs, prompts, strict=True):
        assert pair.chosen.text == prompt.reference
        assert pair.rejected.text == f"{prompt.reference} There is a small dog."
        assert pair.prompt.images[0].sha256 == prompt.images[0].sha256
