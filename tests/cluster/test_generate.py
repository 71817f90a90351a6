"""`python -m cluster.generate bdhs` with scripted engines: resume, refusals, speed of what needs no engine."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from actors.bdhs import Generate
from cluster import bdhs_job
from cluster.bdhs_job import Job, job_of, run
from cluster.generate import build_parser, main
from cluster.generate_engines import Engines
from common.config import RunConfig
from common.datasets import PAIRS, STATS, read_pairs, read_table, write_prompts
from common.errors import UserError
from common.images import ImageStore
from common.protocols import GenerationRequest
from common.records import Completion, Dropped, Prompt, RolloutGroup
from common.rows import PAIR_SCHEMA
from common.shapes.prompts import caption_prompts


class Killed(BaseException):
    """Stands for a signal: nothing between it and the process's end may catch it."""


def scripted(num_workers: int = 1, killed_at: int | None = None) -> Engines:
    """Engines whose answer depends on the request alone; call number `killed_at` never returns."""
    calls = 0

    async def generate(requests: list[GenerationRequest]) -> Sequence[RolloutGroup | Dropped]:
        nonlocal calls
        calls += 1
        if calls == killed_at:
            raise Killed
        return [answer(request) for request in requests]

    @asynccontextmanager
    async def engines(config: RunConfig) -> AsyncIterator[tuple[list[Generate], Callable[[Prompt], int]]]:
        yield [generate] * num_workers, lambda prompt: 36

    return engines


def answer(request: GenerationRequest) -> RolloutGroup | Dropped:
    rng = random.Random(request.seed)
    if rng.random() < 0.1:
        return Dropped(request.id, "engine_refused")
    truth = (request.prompt.reference or "")[len(request.prefix) :]
    same = truth[: truth.index(".") + 1]
    text = rng.choice((same, same, " a ring.", " a cross at the left."))
    return RolloutGroup(request.id, request.prompt, (), 0, (Completion((), text, 0, 0, "stop"),))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    monkeypatch.setattr(bdhs_job, "SHARD_PROMPTS", 16)

    def make(*words: str, out: str = "out", count: int = 150) -> Job:
        line = ["bdhs", "--out", str(tmp_path / out), "--model", str(model), "--count", str(count), *words]
        return job_of(*build_parser().parse_known_args(line))

    return make


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(job: Callable[..., Job]) -> None:
    whole, parts = job(out="whole"), job(out="parts")
    run(whole, scripted())
    for killed_at in (2, 3, 1):
        with pytest.raises(Killed):
            run(parts, scripted(killed_at=killed_at))
    assert not (parts.out / PAIRS).exists()
    run(parts, scripted(num_workers=3))
    left, right = (read_table(out.out / PAIRS, PAIR_SCHEMA).to_pylist() for out in (whole, parts))
    assert left == right and len(left) > 80
    assert (whole.out / STATS).read_text() == (parts.out / STATS).read_text()
    stats = json.loads((whole.out / STATS).read_text())
    assert stats["num_prompts"] == 150 == stats["num_pairs"] + sum(stats["dropped"].values())
    assert stats["dropped"]["engine_refused"] > 0 and stats["accepted_per_attempt"]["2"] > 0


def test_nothing_finished_is_asked_again(job: Callable[..., Job]) -> None:
    done: list[str] = []

    @asynccontextmanager
    async def counting(config: RunConfig) -> AsyncIterator[tuple[list[Generate], Callable[[Prompt], int]]]:
        async with scripted()(config) as ((generate,), count):

            def watch(prompt: Prompt) -> int:
                done.append(prompt.id)
                return count(prompt)

            yield [generate], watch

    with pytest.raises(Killed):
        run(job(), scripted(killed_at=4))
    finished = len(bdhs_job.PairWriter(job().out, bdhs_job.spec_of(job())).notes)
    assert finished > 16
    run(job(), counting)
    assert len(done) == 150 - finished


def test_a_complete_set_starts_no_engine(job: Callable[..., Job], capsys: pytest.CaptureFixture[str]) -> None:
    run(job(count=3), scripted())
    before = read_pairs(job().out)
    began = time.monotonic()
    run(job(count=3), scripted(killed_at=1))
    assert time.monotonic() - began < 1
    assert "already complete" in capsys.readouterr().out and read_pairs(job().out) == before


def test_other_settings_or_another_model_in_the_folder_are_refused(job: Callable[..., Job]) -> None:
    run(job(count=3), scripted())
    with pytest.raises(UserError, match=r"rho = 0\.5"):
        run(job("--rho", "0.5", count=3), scripted())
    first = job(count=3)
    (Path(first.config.model.path) / "config.json").write_text('{"other": 1}')
    with pytest.raises(UserError, match="model_hash"):
        run(first, scripted())


def test_a_prompt_file_with_and_without_references(job: Callable[..., Job], tmp_path: Path) -> None:
    from dataclasses import replace

    good, bare = caption_prompts("train", 2, 0, ImageStore(tmp_path / "elsewhere"))
    write_prompts(tmp_path / "prompts", [good, replace(bare, reference=None)])
    asked = job("--prompts", str(tmp_path / "prompts"), "--threshold", "2", count=10)
    run(asked, scripted())
    stats = json.loads((asked.out / STATS).read_text())
    assert stats["dropped"].get("no_reference") == 1 and stats["num_prompts"] == 2


def test_refusals_are_one_line_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    for words in (
        ["--rho", "2"],
        ["--model", "/nowhere"],
        ["--prompts", "/nowhere"],
        ["--count", "0"],
        ["--loop.x", "1"],
    ):
        assert main(["bdhs", "--out", out, *words]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1


def test_help_is_quick_and_light() -> None:
    code = "import sys, cluster.generate\ntry: cluster.generate.main(['bdhs', '--help'])\nexcept SystemExit: pass\n" + (
        "print([name for name in ('torch', 'vllm', 'ray', 'transformers', 'pydantic') if name in sys.modules])"
    )
    began = time.monotonic()
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert time.monotonic() - began < 1 and shown.rstrip().endswith("[]")
