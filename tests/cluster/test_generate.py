"""`python -m cluster.generate bdhs` with scripted engines: resume, refusals, speed of what needs no engine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import pyarrow as pa
import pytest

from actors.bdhs.sampling import Generate
from actors.image_tokens import ImageTokenCounter
from cluster import progress
from cluster.generate import config_of, main
from cluster.jobs import bdhs_job, shards
from cluster.jobs.bdhs_job import run, settings_of, spec_of
from cluster.jobs.engines import Engines, ray_engines
from cluster.jobs.prompt_source import load_prompts
from common.chat import ChatEncoder
from common.config import SHAPES_POLICY, PromptFile, RunConfig
from common.config.jobs import BdhsJobConfig, GenerateConfig
from common.data.datasets import (
    IMAGES,
    PAIRS,
    PROMPTS,
    SPEC,
    STATS,
    read_pairs,
    read_table,
    write_prompts,
    write_table,
)
from common.data.images import ImageStore
from common.data.pair_writer import PairWriter
from common.data.rows import PAIR_SCHEMA, PROMPT_SCHEMA
from common.errors import UserError
from common.protocols import GenerationRequest
from common.records import (
    Completion,
    Dropped,
    ImageRef,
    Message,
    Part,
    Prompt,
    RolloutGroup,
)
from common.shapes.prompts import caption_prompts

StartedEngines: TypeAlias = AsyncIterator[
    tuple[list[Generate], Callable[[Prompt], int]]
]
Requests: TypeAlias = list[GenerationRequest]
Results: TypeAlias = Sequence[RolloutGroup | Dropped]


def bdhs_config(words: list[str]) -> BdhsJobConfig:
    """The config of a command line that begins with `bdhs`."""
    config = config_of(words)
    assert isinstance(config, BdhsJobConfig)
    return config


class Killed(BaseException):
    """Stands for a signal: nothing between it and the process's end may catch it."""


def scripted(num_workers: int = 1, killed_at: int | None = None) -> Engines:
    """Engines whose answer depends on the request alone; call number `killed_at` never returns."""
    calls = 0

    async def generate(
        requests: Requests,
    ) -> Results:
        nonlocal calls
        calls += 1
        if calls == killed_at:
            raise Killed
        return [answer(request) for request in requests]

    @asynccontextmanager
    async def engines(
        config: RunConfig,
    ) -> StartedEngines:
        yield [generate] * num_workers, lambda prompt: 36

    return engines


def answer(request: GenerationRequest) -> RolloutGroup | Dropped:
    rng = random.Random(request.seed)
    if rng.random() < 0.1:
        return Dropped(request.id, "engine_refused")
    truth = (request.prompt.reference or "")[len(request.prefix) :]
    same = truth[: truth.index(".") + 1]
    text = rng.choice((same, same, " a ring.", " a cross at the left."))
    return answered(request, text)


def answered(request: GenerationRequest, text: str) -> RolloutGroup:
    completion = Completion((), text, 0, 0, "stop")
    return RolloutGroup(request.id, request.prompt, (), 0, (completion,))


def wrapped(engines: Engines, wrap: Callable[[Generate], Generate]) -> Engines:
    """The same engines, each worker's `generate` wrapped."""

    @asynccontextmanager
    async def wrapping(config: GenerateConfig) -> StartedEngines:
        async with engines(config) as (workers, count):
            yield [wrap(generate) for generate in workers], count

    return wrapping


def stats_of(config: BdhsJobConfig) -> dict[str, Any]:
    return dict(json.loads((config.generate.out / STATS).read_text()))


def rows_of(config: BdhsJobConfig) -> list[Any]:
    """The pairs as they are on disk."""
    table = read_table(config.generate.out / PAIRS, PAIR_SCHEMA)
    return list(table.to_pylist())


def line_of(out: Path, *words: str) -> list[str]:
    return ["bdhs", "--out", str(out), *words]


@pytest.fixture
def job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., BdhsJobConfig]:
    model = tmp_path / "model"
    shutil.copytree(SHAPES_POLICY, model)
    monkeypatch.setattr(shards, "SHARD_PROMPTS", 16)

    def make(*words: str, out: str = "out", count: int = 150) -> BdhsJobConfig:
        options = ("--model", str(model), "--count", str(count))
        return bdhs_config(line_of(tmp_path / out, *options, *words))

    return make


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    job: Callable[..., BdhsJobConfig],
) -> None:
    whole, parts = job(out="whole"), job(out="parts")
    run(whole, scripted())
    for killed_at in (2, 3, 1):
        with pytest.raises(Killed):
            run(parts, scripted(killed_at=killed_at))
    assert not (parts.generate.out / PAIRS).exists()
    run(parts, scripted(num_workers=3))
    check_equal(whole, parts)
    assert len(rows_of(whole)) > 80
    stats = stats_of(whole)
    assert stats["num_prompts"] == 150
    assert stats["num_pairs"] + sum(stats["dropped"].values()) == 150
    assert stats["dropped"]["engine_refused"] > 0
    assert stats["accepted_per_attempt"]["2"] > 0


def check_equal(whole: BdhsJobConfig, parts: BdhsJobConfig) -> None:
    """Two sets have the same pairs and, to the byte, the same statistics."""
    assert rows_of(whole) == rows_of(parts)
    whole_stats = (whole.generate.out / STATS).read_text()
    parts_stats = (parts.generate.out / STATS).read_text()
    assert whole_stats == parts_stats


CHILD = """
import os, signal, sys
from cluster.jobs import bdhs_job
from cluster.jobs import shards
from cluster.generate import config_of
from tests.cluster import test_generate

class Killed(BaseException):
    def __new__(cls):
        os.kill(os.getpid(), signal.SIGKILL)

test_generate.Killed = Killed
shards.SHARD_PROMPTS = 16
killed_at, *line = sys.argv[1:]
bdhs_job.run(config_of(line), test_generate.scripted(killed_at=int(killed_at)))
"""


@pytest.mark.chaos
def test_a_process_that_is_killed_outright_loses_and_repeats_nothing(
    job: Callable[..., BdhsJobConfig],
) -> None:
    whole, parts = job(out="whole"), job(out="parts")
    run(whole, scripted())
    options = ("--model", parts.model.path, "--count", "150")
    line = line_of(parts.generate.out, *options)
    finished: list[int] = []
    for killed_at in (2, 3):
        child = [sys.executable, "-c", CHILD, str(killed_at), *line]
        died = subprocess.run(child, capture_output=True)
        assert died.returncode == -signal.SIGKILL, died.stderr
        with PairWriter(parts.generate.out, spec_of(parts)) as writer:
            ids = [note["id"] for note in writer.notes]
        assert len(set(ids)) == len(ids)
        finished.append(len(ids))
    assert 0 < finished[0] < finished[1] < 150
    run(parts, scripted(num_workers=2))
    check_equal(whole, parts)


def test_nothing_finished_is_asked_again(job: Callable[..., BdhsJobConfig]) -> None:
    done: list[str] = []

    @asynccontextmanager
    async def counting(
        config: RunConfig,
    ) -> StartedEngines:
        async with scripted()(config) as ((generate,), count):

            def watch(prompt: Prompt) -> int:
                done.append(prompt.id)
                return count(prompt)

            yield [generate], watch

    with pytest.raises(Killed):
        run(job(), scripted(killed_at=4))
    finished = len(PairWriter(job().generate.out, spec_of(job())).notes)
    assert finished > 16
    run(job(), counting)
    assert len(done) == 150 - finished


def test_a_complete_set_starts_no_engine(
    job: Callable[..., BdhsJobConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    run(job(count=3), scripted())
    before = read_pairs(job().generate.out)

    def none(config: RunConfig) -> NoReturn:
        pytest.fail("an engine is started")

    run(job(count=3), none)
    assert "already complete" in capsys.readouterr().out
    assert read_pairs(job().generate.out) == before


def test_other_settings_or_another_model_in_the_folder_are_refused(
    job: Callable[..., BdhsJobConfig],
) -> None:
    run(job(count=3), scripted())
    with pytest.raises(UserError, match=r"rho = 0\.5"):
        run(job("--rho", "0.5", count=3), scripted())
    first = job(count=3)
    (Path(first.model.path) / "config.json").write_text('{"other": 1}')
    with pytest.raises(UserError, match="model_hash"):
        run(first, scripted())


def test_a_prompt_file_with_and_without_references(
    job: Callable[..., BdhsJobConfig], tmp_path: Path
) -> None:
    *good, bare = caption_prompts("train", 9, 0, ImageStore(tmp_path / "elsewhere"))
    write_prompts(tmp_path / "prompts", [*good, replace(bare, reference=None)])
    asked = job("--prompts", str(tmp_path / "prompts"), "--threshold", "2", count=10)
    run(asked, scripted())
    stats = stats_of(asked)
    assert stats["dropped"]["no_reference"] == 1
    assert stats["num_prompts"] == 9


def bad_rows(folder: Path) -> None:
    """A prompt set with two good rows, one of them of a single word, and one row for every way to be bad."""
    store = ImageStore(folder / IMAGES)
    good = caption_prompts("train", 1, 0, store)[0]
    garbage = b"GIF89a, or so it says"
    digest = hashlib.sha256(garbage).hexdigest()
    fake = store.root / digest[:2] / f"{digest}.gif"
    fake.parent.mkdir(exist_ok=True)
    fake.write_bytes(garbage)
    gone = ImageRef("0" * 64, str(store.root / "00" / "gone.png"))
    text_only = (Message("user", (Part("text", "Hello?"),)),)
    prompts = [
        good,
        replace(good, id="one_word", reference="Red"),
        replace(good, id="no_answer", reference=None),
        replace(good, id="no_image", messages=text_only, images=()),
        replace(good, id="ten_megabytes", reference="There is a cat. " * 650_000),
        replace(good, id="not_an_image", images=(ImageRef(digest, str(fake)),)),
        replace(good, id="missing", images=(gone,)),
        replace(good, id="outside"),
    ]
    write_prompts(folder, prompts)
    rows = read_table(folder / PROMPTS, PROMPT_SCHEMA).to_pylist()
    rows[-1]["images"][0]["path"] = "../../../etc/hostname"
    rows.append(rows[0])
    write_rows(folder, rows)


def write_rows(folder: Path, rows: list[Any]) -> None:
    table = pa.Table.from_pylist(rows, schema=PROMPT_SCHEMA)
    write_table(folder / PROMPTS, table)


def test_every_bad_row_is_counted_and_none_is_fatal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the shipped policy's own image-token counter; only the answers are scripted."""
    bad_rows(tmp_path / "prompts")

    @asynccontextmanager
    async def engines(
        config: RunConfig,
    ) -> StartedEngines:
        async def generate(requests: Requests) -> Results:
            return [answered(request, " a ring at the top.") for request in requests]

        encoder = ChatEncoder(config.model.path, config.model.max_length)
        yield [generate], ImageTokenCounter(encoder)

    options = ("--prompts", str(tmp_path / "prompts"), "--threshold", "2")
    asked = bdhs_config(line_of(tmp_path / "out", *options))
    run(asked, engines)
    stats = stats_of(asked)
    assert stats["dropped"] == {
        "answer_too_long": 1,
        "duplicate_id": 1,
        "image_corrupt": 1,
        "image_count": 1,
        "image_missing": 1,
        "no_reference": 1,
        "path_outside": 1,
    }
    assert stats["num_prompts"] == 9
    assert stats["num_pairs"] == 2
    printed = capsys.readouterr().out
    assert "lexical similarity stands in for sentence embeddings" in printed
    (_, one_word) = read_pairs(tmp_path / "out")
    assert one_word.chosen.text == "Red"
    assert one_word.rejected.text == " a ring at the top."


def test_count_is_of_rows_good_or_bad(
    job: Callable[..., BdhsJobConfig], tmp_path: Path
) -> None:
    bad_rows(tmp_path / "prompts")
    rows = read_table(tmp_path / "prompts" / PROMPTS, PROMPT_SCHEMA).to_pylist()
    good, no_answer, outside = rows[0], rows[2], rows[-2]
    write_rows(tmp_path / "prompts", [good, outside, no_answer, outside])
    asked = job("--prompts", str(tmp_path / "prompts"), "--threshold", "2", count=3)
    # Three rows are read; the second one that lies outside is the fourth.
    counts = "{'path_outside': 1, 'identical': 1, 'no_reference': 1}"
    with pytest.raises(UserError, match=f"none of 3 rows; dropped {counts}"):
        run(asked, scripted())


def test_the_variant_reaches_the_requests_and_the_statistics(
    job: Callable[..., BdhsJobConfig],
) -> None:
    asked: list[GenerationRequest] = []

    def watched(generate: Generate) -> Generate:
        async def watch(requests: Requests) -> Results:
            asked.extend(requests)
            return await generate(requests)

        return watch

    noisy = job("--variant", "noise", count=4)
    run(noisy, wrapped(scripted(), watched))
    assert asked
    for request in asked:
        assert request.noise
        assert request.visible_image_tokens is None
    assert stats_of(noisy)["variant"] == "noise"
    # The pairs have the pictures as they were, not the noised ones.
    store = ImageStore(noisy.generate.out / IMAGES)
    prompts, _ = load_prompts(noisy, store, [])
    clean = {prompt.images for prompt in prompts}
    assert {pair.prompt.images for pair in read_pairs(noisy.generate.out)} <= clean
    with pytest.raises(UserError, match="variant = noise"):
        run(job(count=4), scripted())


def test_overrides_take_effect(job: Callable[..., BdhsJobConfig]) -> None:
    asked = job("--rollout.bdhs.rho", "0.2", "--run.seed", "7", count=3)
    spec = spec_of(asked)
    assert (spec["rho"], spec["seed"]) == (0.2, 7)
    run(asked, scripted())
    written = json.loads((asked.generate.out / SPEC).read_text())
    assert (written["rho"], written["seed"]) == (0.2, 7)


def test_seeds_of_their_own(job: Callable[..., BdhsJobConfig]) -> None:
    asked = job("--seed", "7", "--rollout.bdhs.seed", "3", "--data.prompts.seed=5")
    assert settings_of(asked).seed == 3
    assert asked.scene_seed == 5


def test_rho_fits_the_demo_policy_unless_it_is_set(
    job: Callable[..., BdhsJobConfig], tmp_path: Path
) -> None:
    demo = bdhs_config(["bdhs", "--out", str(tmp_path)])
    assert settings_of(demo).rho == 0.5
    assert demo.scene_seed == 0
    spec = spec_of(demo)
    assert spec["prompts"] == {"kind": "shapes", "split": "train"}
    assert spec["count"] == 1000
    hidden = bdhs_config(["bdhs", "--out", str(tmp_path), "--rollout.bdhs.rho=0.99"])
    assert settings_of(hidden).rho == 0.99
    assert settings_of(job()).rho == 0.99


def test_a_preset_says_where_prompts_come_from(
    job: Callable[..., BdhsJobConfig], tmp_path: Path
) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text(
        "[data]\nprompts = { kind = 'file', path = 'x' }\n"
        "[rollout]\nbdhs = { rho = 0.7, max_attempts = 3 }\n"
        "[learner]\nnum_steps = 5\n"
    )
    asked = job("--preset", str(preset), "--attempts=2", count=7)
    assert asked.data.prompts == PromptFile(path="x", rows=7)
    settings = settings_of(asked)
    assert (settings.rho, settings.max_attempts) == (0.7, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rho", "0.3", "--rollout.bdhs.rho", "0.2"], "--rho and --rollout.bdhs.rho"),
        (["--seed=1", "--run.seed=2"], "--seed and --run.seed"),
        (["--data.prompts.count=2"], "--count and --data.prompts.count"),
        (["--prompts=x", "--data.prompts.kind=shapes"], "--prompts and --data.prompts"),
        (["--rho", "2"], "--rho (rollout.bdhs.rho): "),
        (["--learner.num_steps=3"], "--learner.num_steps: expected a key that this"),
        (["--rollout.temperature=3"], "--rollout.temperature: expected a key that"),
        (["--rollout.bdhs.roh=3"], "unknown config key rollout.bdhs.roh; did you mean"),
    ],
)
def test_what_would_be_ignored_or_is_said_twice_is_refused(
    words: list[str], message: str, job: Callable[..., BdhsJobConfig]
) -> None:
    with pytest.raises(UserError) as error:
        job(*words)
    assert str(error.value).startswith(message)


def test_small_cache_blocks_unless_asked_otherwise(
    job: Callable[..., BdhsJobConfig],
) -> None:
    assert job().rollout.engine.block_size == 32
    assert job("--rollout.engine.block_size", "128").rollout.engine.block_size == 128


def test_the_log_says_how_fast_and_how_long(
    job: Callable[..., BdhsJobConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.0)
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
    run(job(), scripted())
    lines = capsys.readouterr().err.splitlines()
    pattern = r"bdhs: (\d+)/150, [\d.]+/s prompts, [\d.]+ pairs/s, (\d+) s left"
    reports = [line for line in lines if re.fullmatch(pattern, line)]
    assert len(reports) == 150
    last = re.fullmatch(pattern, reports[-1])
    # All done, and no time left.
    assert last is not None and last.groups() == ("150", "0")
    assert re.fullmatch(r"[\d.]+ prompts/s, [\d.]+ pairs/s", lines[-1])


def test_a_log_has_a_first_line_and_a_last_unless_the_job_is_short(
    job: Callable[..., BdhsJobConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for first_line_s, expected in (
        (0.0, ["bdhs: 1/150", "bdhs: 150/150"]),
        (600.0, []),
    ):
        monkeypatch.setattr(progress, "FIRST_LINE_S", first_line_s)
        run(job(out=str(first_line_s)), scripted())
        lines = capsys.readouterr().err.splitlines()
        reports = [line for line in lines if line.startswith("bdhs: ")]
        counts = [line.split(",")[0] for line in reports]
        assert counts == expected


def test_refusals_are_one_line_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    for words in (
        ["--rho", "2"],
        ["--variant", "blur"],
        ["--model", "/nowhere"],
        ["--prompts", "/nowhere"],
        ["--count", "0"],
        ["--loop.x", "1"],
    ):
        assert main(["bdhs", "--out", out, *words]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert message.count("\n") == 1


HELP = """
import sys
import cluster.generate

try:
    cluster.generate.main(["bdhs", "--help"])
except SystemExit:
    pass
print(sorted({"torch", "vllm", "ray", "transformers"} & set(sys.modules)))
"""


def test_help_loads_nothing_heavy() -> None:
    command = [sys.executable, "-c", HELP]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.rstrip().endswith("[]")


def recorded(engines: Engines, prompts_of_workers: list[list[str]]) -> Engines:
    """The same engines; `prompts_of_workers` gets a list of the requests' prompts from each worker."""

    def recording(generate: Generate) -> Generate:
        prompt_ids: list[str] = []
        prompts_of_workers.append(prompt_ids)

        async def record(requests: Requests) -> Results:
            for request in requests:
                prompt_ids.append(request.prompt.id)
            # An engine takes time, so that the others get their turn.
            await asyncio.sleep(0.01)
            return await generate(requests)

        return record

    return wrapped(engines, recording)


def test_a_small_job_is_shared_by_all_workers(
    job: Callable[..., BdhsJobConfig],
) -> None:
    prompts_of_workers: list[list[str]] = []
    run(job(count=20), recorded(scripted(num_workers=3), prompts_of_workers))
    assert len(set().union(*prompts_of_workers)) == 20
    nums_of_prompts = [len(set(prompt_ids)) for prompt_ids in prompts_of_workers]
    assert len(nums_of_prompts) == 3
    assert min(nums_of_prompts) >= 5
    assert max(nums_of_prompts) <= 8


def test_a_slow_sentence_does_not_idle_its_engine(
    job: Callable[..., BdhsJobConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call is answered only when all prompts that were not part of it are with the engine."""
    monkeypatch.setattr(bdhs_job, "WINDOW", 8)
    asked: set[str] = set()
    all_asked = asyncio.Event()

    def watched(generate: Generate) -> Generate:
        async def watch(requests: Requests) -> Results:
            is_first = not asked
            asked.update(request.prompt.id for request in requests)
            if len(asked) == 40:
                all_asked.set()
            if is_first:
                await asyncio.wait_for(all_asked.wait(), 30)
            return await generate(requests)

        return watch

    run(job(count=40), wrapped(scripted(), watched))
    assert len(asked) == 40


@pytest.mark.real
@pytest.mark.slow
def test_two_real_workers_make_what_one_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray actors with vLLM engines on the shapes world's policy: prompts shared without overlap, the same set."""
    monkeypatch.setattr(bdhs_job, "WINDOW", 4)
    configs: list[BdhsJobConfig] = []
    for num_workers in (1, 2):
        prompts_of_workers: list[list[str]] = []
        options = ("--count", "24", "--workers", str(num_workers))
        line = line_of(tmp_path / str(num_workers), *options)
        config = bdhs_config([*line, "--rollout.num_cpus", "0.5"])
        run(config, recorded(ray_engines, prompts_of_workers))
        configs.append(config)
        nums_of_prompts = [len(set(prompt_ids)) for prompt_ids in prompts_of_workers]
        assert len(nums_of_prompts) == num_workers
        assert min(nums_of_prompts) >= 4
        # No prompt is with two workers, and none is left out.
        assert sum(nums_of_prompts) == 24
        assert len(set().union(*prompts_of_workers)) == 24
    one, two = configs
    stats = stats_of(one)
    assert stats["num_prompts"] == 24
    assert stats["num_pairs"] + sum(stats["dropped"].values()) == 24
    assert stats == stats_of(two)
    assert rows_of(one) == rows_of(two)
