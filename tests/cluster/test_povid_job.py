"""`python -m cluster.generate povid` against an HTTP server on this machine, and once against a real `vllm serve`."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.povid import chat_endpoint
from actors.povid.injection import EndpointInjector, Injection, Row
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
from common.records import Dropped, PreferencePair, Prompt
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
    hit = TRUE.search(asked.text)
    assert hit is not None
    return completion(f"<rewritten>{hit[1]} There is a small dog.</rewritten>")


@contextmanager
def answering(script: Callable[[Asked], Answer] = rewrite) -> Iterator[ChatServer]:
    with ChatServer(script) as server:
        yield server


def words(out: Path, url: str, *more: str) -> list[str]:
    return [
        "povid",
        "--out",
        str(out),
        "--endpoint",
        url,
        "--model-name",
        "writer",
        "--retries",
        "1",
        *more,
    ]


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
    return list({prompt.reference: prompt for prompt in prompts}.values())[:30]


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
    write_prompts(tmp_path / "prompts", [caption, *asked, *bad, gone])
    (
        tmp_path
        / "prompts"
        / "images"
        / gone.images[0].sha256[:2]
        / f"{gone.images[0].sha256}.png"
    ).unlink()
    run(
        job(
            "--out",
            str(tmp_path / "a"),
            "--corrupter",
            "rules",
            "--prompts",
            str(tmp_path / "prompts"),
        )
    )
    stats = stats_of(tmp_path / "a")
    assert (
        stats["num_rows"] == 7
        and stats["num_pairs"] == 3
        and stats["pairs_per_kind"]["reasoning"] == 2
    )
    assert stats["dropped"] == {
        "answer_too_long": 1,
        "image_missing": 1,
        "no_reference": 1,
        "not_true": 1,
    }
    assert "There is a dog." in stats["examples"]["not_true"]


def test_every_kind_of_every_prompt_in_order(tmp_path: Path) -> None:
    line = (
        "--corrupter",
        "rules",
        "--count",
        "8",
        "--kinds",
        "relation,entity",
        "--every-kind",
    )
    run(job("--out", str(tmp_path / "a"), *line))
    ids = [pair.id for pair in read_pairs(tmp_path / "a")]
    assert ids == [
        f"povid/shapes/train/{n:05d}/{kind}"
        for n in range(8)
        for kind in ("entity", "relation")
    ]


# Resuming.


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_and_asks_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captions: list[Prompt]
) -> None:
    write_prompts(tmp_path / "prompts", captions)
    prompts = (
        "--prompts",
        str(tmp_path / "prompts"),
        "--price-in",
        "1",
        "--price-out",
        "1",
    )
    original, calls = EndpointInjector.__call__, Counter[str]()

    async def killed(self: EndpointInjector, row: Row) -> Injection:
        """Dies after the reply is there and before the row is recorded."""
        injection = await original(self, row)
        calls["rows"] += 1
        if calls["rows"] in (7, 12, 25):
            raise Killed
        return injection

    with answering() as server:
        assert (
            main(words(tmp_path / "whole", server.url, *prompts, "--concurrency", "1"))
            == 0
        )
        asked = len(server.asked)
        assert asked == len(captions)
        monkeypatch.setattr(EndpointInjector, "__call__", killed)
        for _ in range(3):
            with pytest.raises(Killed):
                main(
                    words(
                        tmp_path / "parts", server.url, *prompts, "--concurrency", "5"
                    )
                )
            assert not (tmp_path / "parts" / PAIRS).exists()
        assert (
            main(words(tmp_path / "parts", server.url, *prompts, "--concurrency", "5"))
            == 0
        )
        texts = Counter(asked.text for asked in server.asked[asked:])
        # A request that was in flight when the process died was never answered to anyone.
        assert len(texts) == asked and len(server.asked) - 2 * asked <= 3 * 4
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")
    whole, parts = stats_of(tmp_path / "whole"), stats_of(tmp_path / "parts")
    assert parts.pop("num_cache_hits") >= 3 and whole.pop("num_cache_hits") == 0
    assert whole == parts and whole["cost"] == pytest.approx(15e-6 * asked)


def test_a_complete_set_asks_nothing_even_of_another_address(tmp_path: Path) -> None:
    with answering() as server:
        assert main(words(tmp_path / "a", server.url, "--count", "3")) == 0
        asked = len(server.asked)
        assert main(words(tmp_path / "a", "http://127.0.0.1:9/v1", "--count", "3")) == 0
        assert len(server.asked) == asked
        assert (
            main(
                words(
                    tmp_path / "a", server.url, "--count", "3", "--temperature", "0.1"
                )
            )
            == 2
        )


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
    failing = {
        captions[3 * index + 2].reference: reason for index, reason in enumerate(ways)
    }

    def script(asked: Asked) -> Answer:
        hit = TRUE.search(asked.text)
        assert hit is not None
        return ways[failing[hit[1]]] if hit[1] in failing else rewrite(asked)

    write_prompts(tmp_path / "prompts", captions)
    with answering(script) as server:
        line = words(
            tmp_path / "a",
            server.url,
            "--prompts",
            str(tmp_path / "prompts"),
            "--timeout",
            "1.5",
        )
        assert main([*line, "--concurrency", "4"]) == 0
    stats = stats_of(tmp_path / "a")
    assert stats["dropped"] == dict.fromkeys(sorted(ways), 1)
    assert stats["num_pairs"] == 20 and sum(stats["dropped_per_kind"].values()) == 10
    assert stats["num_replies"] == 30 - 5, (
        "neither of 429, 500, 400, garbage and silence is a reply"
    )


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
        hit = TRUE.search(asked.text)
        assert hit is not None
        return answer if hit[1] in failing else rewrite(asked)

    write_prompts(tmp_path / "prompts", captions)
    with answering(script) as server:
        line = words(
            tmp_path / "a",
            server.url,
            "--prompts",
            str(tmp_path / "prompts"),
            "--concurrency",
            "1",
        )
        assert main(line) == 0
    stats = stats_of(tmp_path / "a")
    assert stats["dropped"] == {reason: 20} and stats["num_pairs"] == 10


def test_quick_refusals_do_not_outrun_slow_replies(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        return (
            refusal(400) if asked.number % 4 else replace(rewrite(asked), delay_s=0.5)
        )

    with answering(script) as server:
        assert (
            main(
                words(
                    tmp_path / "a", server.url, "--count", "80", "--concurrency", "16"
                )
            )
            == 0
        )
    stats = stats_of(tmp_path / "a")
    assert stats["dropped"] == {"endpoint_refused": 80 - stats["num_pairs"]}


def test_rows_that_were_never_asked_about_do_not_show_that_the_endpoint_works(
    tmp_path: Path, captions: list[Prompt], capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [
        *(replace(prompt, reference=None) for prompt in captions[:5]),
        *captions[5:],
    ]
    write_prompts(tmp_path / "prompts", prompts)
    with answering(lambda asked: refusal(400, "max_tokens is not supported")) as server:
        for _ in range(2):
            assert (
                main(
                    words(
                        tmp_path / "a",
                        server.url,
                        "--prompts",
                        str(tmp_path / "prompts"),
                    )
                )
                == 2
            )
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
        line = words(
            tmp_path / "a",
            server.url,
            "--count",
            "100",
            "--concurrency",
            "4",
            "--timeout",
            "1",
        )
        assert main(line) == 2
        assert time.monotonic() - began < 15 and len(server.asked) <= at_most
        error = capsys.readouterr().err.splitlines()[-1]
        assert (
            error.startswith("error: --endpoint: expected replies") and reason in error
        )
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
        assert main(words(tmp_path / "a", url, "--count", "1", "--retries", "20")) == 2
    assert (
        time.monotonic() - began < 15
        and "endpoint_unreachable" in capsys.readouterr().err
    )


@pytest.mark.parametrize("status", [503, 429, 401])
def test_an_endpoint_that_dies_on_the_way_loses_no_row(
    status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = replace(refusal(status), delay_s=0.2)  # good replies on their way come first
    with answering(
        lambda asked: rewrite(asked) if asked.number <= 20 else gone
    ) as server:
        line = words(tmp_path / "a", server.url, "--count", "60", "--concurrency", "4")
        assert main(line) == 2
        assert (
            "16 failures in a row" in capsys.readouterr().err
            and not (tmp_path / "a" / PAIRS).exists()
        )
        before, server.script = len(server.asked), rewrite
        assert main(line) == 0
        assert len(server.asked) - before <= 40
    stats = stats_of(tmp_path / "a")
    assert stats["num_pairs"] == 60 and not stats["dropped"]


def test_the_last_row_may_fail_alone(tmp_path: Path, captions: list[Prompt]) -> None:
    write_prompts(tmp_path / "prompts", captions[:5])
    with answering(
        lambda asked: (
            refusal(400)
            if (captions[4].reference or "") in asked.text
            else rewrite(asked)
        )
    ) as s:
        assert (
            main(
                words(
                    tmp_path / "a",
                    s.url,
                    "--prompts",
                    str(tmp_path / "prompts"),
                    "--concurrency",
                    "1",
                )
            )
            == 0
        )
    assert stats_of(tmp_path / "a")["dropped"] == {"endpoint_refused": 1}


def test_concurrency_is_reached_and_kept(tmp_path: Path) -> None:
    def slow(asked: Asked) -> Answer:
        return replace(rewrite(asked), delay_s=0.05)

    with answering(slow) as server:
        assert (
            main(
                words(tmp_path / "a", server.url, "--count", "40", "--concurrency", "6")
            )
            == 0
        )
        assert server.most_in_flight == 6


def test_the_key_stays_out_of_the_folder_and_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "sk-very-secret-0987654321"
    monkeypatch.setenv("OPENAI_API_KEY", secret)

    def echo(asked: Asked) -> Answer:
        return (
            refusal(400, f"your key is {secret}")
            if asked.number % 3 == 0
            else completion(f"A dog says {secret}.")
        )

    with answering(echo) as server:
        assert main(words(tmp_path / "a", server.url, "--count", "12")) == 0
        assert {asked.headers["authorization"] for asked in server.asked} == {
            f"Bearer {secret}"
        }
    shown = capfd.readouterr()
    written = [
        path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()
    ]
    assert len(written) > 4 and not any(secret.encode() in data for data in written)
    assert secret not in shown.out + shown.err and "[api key]" in shown.out
    assert not any(secret in repr(row) for row in rows_of(tmp_path / "a"))


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
        (["--corrupter", "rules", "--prompts", "/nowhere"], "--prompts"),
        (
            ["--corrupter", "rules", "--rollout.num_workers", "2"],
            "--rollout.num_workers",
        ),
        (
            ["--endpoint", "http://x/v1", "--model-name", "m", "--concurrency", "0"],
            "concurrency",
        ),
        (
            [
                "--endpoint",
                "http://x/v1",
                "--model-name",
                "m",
                "--api-key-env",
                "NOT_SET",
            ],
            "NOT_SET",
        ),
    ],
)
def test_refusals_are_one_line_with_status_2(
    line: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["povid", "--out", str(tmp_path / "out"), *line]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and said in message and "secret" not in message


def test_the_spec_says_what_decides_the_content(tmp_path: Path) -> None:
    with answering() as server:
        main(
            words(
                tmp_path / "a",
                server.url,
                "--count",
                "2",
                "--concurrency",
                "3",
                "--price-in",
                "1",
            )
        )
    spec = (tmp_path / "a" / SPEC).read_text()
    assert {
        "method",
        "model",
        "templates",
        "temperature",
        "kinds",
        "seed",
        "count",
    } <= set(json.loads(spec))
    assert "127.0.0.1" not in spec and "concurrency" not in spec and "price" not in spec


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
    more = [
        "--prompts",
        str(tmp_path / "prompts"),
        "--max-tokens",
        "60",
        "--price-in",
        "1",
        "--price-out",
        "2",
    ]
    for name, flags in (("text", []), ("image", ["--send-image"])):
        out = tmp_path / name
        line = [*words(out, vllm_serve, *more, *flags), "--model-name", "tiny"]
        assert main(line) == 0
        stats = stats_of(out)
        assert (
            stats["num_rows"]
            == 6
            == stats["num_pairs"] + sum(stats["dropped"].values())
        )
        assert not any(
            reason.startswith("endpoint") and reason != "endpoint_empty"
            for reason in stats["dropped"]
        )
        assert stats["num_replies"] == 6
        assert (
            stats["num_replies_without_usage"]
            == 0
            < stats["num_completion_tokens"]
            <= 360
        )
        assert stats["num_prompt_tokens"] > 6 * 100
        spent = stats["num_prompt_tokens"] + 2 * stats["num_completion_tokens"]
        assert stats["cost"] == pytest.approx(spent / 1e6)
    assert (
        stats_of(tmp_path / "image")["num_prompt_tokens"]
        > stats_of(tmp_path / "text")["num_prompt_tokens"]
    )

    # Without its pairs but with its replies a set is made again with nobody to ask.
    texts = {pair.id: pair.rejected.text for pair in read_pairs(tmp_path / "text")}
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / REPLIES).write_bytes(
        (tmp_path / "text" / REPLIES).read_bytes()
    )
    line = words(tmp_path / "again", "http://127.0.0.1:9/v1", *more)
    assert main([*line, "--model-name", "tiny"]) == 0
    assert {
        pair.id: pair.rejected.text for pair in read_pairs(tmp_path / "again")
    } == texts
    assert stats_of(tmp_path / "again")["num_cache_hits"] == 6


def test_notes_hold_no_more_than_they_need(tmp_path: Path) -> None:
    from actors.povid.stats import note_of

    note = note_of(
        Injection(
            "p", "entity", Dropped("p", "endpoint_garbage", "x" * 10_000), "failed"
        )
    )
    assert len(json.dumps(note)) < 400


def test_chosen_is_the_true_answer_untouched(
    tmp_path: Path, captions: list[Prompt]
) -> None:
    write_prompts(tmp_path / "prompts", captions[:4])
    with answering() as server:
        assert (
            main(
                words(
                    tmp_path / "a", server.url, "--prompts", str(tmp_path / "prompts")
                )
            )
            == 0
        )
    pairs: list[PreferencePair] = read_pairs(tmp_path / "a")
    assert [pair.chosen.text for pair in pairs] == [
        prompt.reference for prompt in captions[:4]
    ]
    assert all(
        pair.rejected.text == f"{pair.chosen.text} There is a small dog."
        for pair in pairs
    )
    assert [pair.prompt.images[0].sha256 for pair in pairs] == [
        p.images[0].sha256 for p in captions[:4]
    ]
