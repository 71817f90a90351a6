"""An exported policy behind a real vLLM server: OpenAI's client asks it, and `python -m cluster.generate povid` does.

The server and the client are started with the words of docs/howto/use_the_policy.md.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.generate import main
from cluster.jobs.povid_job import REPLIES
from common.config import SHAPES_POLICY
from common.data.datasets import read_pairs, write_prompts
from common.data.images import ImageStore
from common.records import Prompt
from tests.cluster.povid.sets import from_file, stats_of, words
from tests.docs.pages import DOCS, ROOT, block_with
from tests.learner.helpers import make_pairs, run_config, started, train, written

PAGE = DOCS / "howto" / "use_the_policy.md"
SERVE = """--max-model-len 4096 --max-num-seqs 8 --skip-mm-profiling --disable-log-stats
--limit-mm-per-prompt {"image":1}"""
"""Beside what the documents say: less to start up."""
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
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped tiny policy after one step, as a run exports it."""
    folder = tmp_path_factory.mktemp("policy")
    optimizer = {"lr": 1e-5, "warmup_steps": 1}
    trainer = started(run_config(model=ROOT / SHAPES_POLICY, optimizer=optimizer))
    train(trainer, [make_pairs(ImageStore(folder / "images"), 6)])
    trainer.export(folder / "policy")
    written(trainer)
    return folder / "policy"


@pytest.fixture(scope="module")
def vllm_serve(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An exported policy behind vLLM's own server, started by the command of the documents."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    (line,) = block_with(PAGE, "api_server").commands
    python, *words = shlex.split(line)
    assert python == "python"
    words[words.index("runs/demo/policy")] = str(policy)
    words[words.index("8000")] = str(port)
    command = [sys.executable, *words, "--host", "127.0.0.1", *SERVE.split()]
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
def test_openais_client_asks_about_a_picture(
    vllm_serve: str,
    captions: list[Prompt],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The code of the documents; another picture gets another answer, and the policy saw it."""
    answers = []
    for prompt in captions[:3]:
        code = block_with(PAGE, "OpenAI(").text
        code = code.replace("http://localhost:8000/v1", vllm_serve)
        code = code.replace("a.png", prompt.images[0].path)
        exec(compile(code, str(PAGE), "exec"), {})
        answers.append(capsys.readouterr().out.strip())
    assert all(answer.startswith("There is") for answer in answers), answers
    assert len(set(answers)) == 3


@pytest.mark.real
def test_a_real_vllm_serve_of_the_tiny_policy(
    vllm_serve: str, tmp_path: Path, captions: list[Prompt]
) -> None:
    """Plumbing only: the policy cannot follow an instruction. With images, and with text alone."""
    write_prompts(tmp_path / "prompts", captions[:6])
    options = (
        f"{from_file(tmp_path / 'prompts')} --max-tokens 60 "
        "--price-in 1 --price-out 2 --model-name policy"
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
