"""`python -m cluster.generate bdhs` with scripted engines: rows good and bad, and how workers share them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.bdhs.sampling import Generate
from actors.image_tokens import ImageTokenCounter
from cluster.jobs import bdhs_job
from cluster.jobs.bdhs_job import run
from cluster.jobs.prompt_source import load_prompts
from common.chat import ChatEncoder
from common.config import RunConfig
from common.config.jobs import BdhsJobConfig
from common.data.datasets import (
    IMAGES,
    PROMPTS,
    read_pairs,
    read_table,
    write_prompts,
    write_table,
)
from common.data.images import ImageStore
from common.data.rows import PROMPT_SCHEMA
from common.errors import UserError
from common.protocols import GenerationRequest
from common.records import ImageRef, Message, Part
from common.shapes.prompts import caption_prompts
from tests.cluster.bdhs.scripted import (
    Requests,
    Results,
    StartedEngines,
    answered,
    bdhs_config,
    line_of,
    recorded,
    scripted,
    stats_of,
    wrapped,
)


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
