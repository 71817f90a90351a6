"""A prompt or a pair that a run cannot use: it is counted, and a run of nothing else stops."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.run import training_data
from cluster.run.outcome import GroupOutcome
from cluster.run.recorder import Recorder
from common.config import PromptFile, RunConfig
from common.data.datasets import IMAGES, PAIRS, read_pairs, write_pairs, write_prompts
from common.data.images import ImageStore
from common.errors import UserError
from common.metrics import read_lines
from common.protocols import GenerationRequest
from common.records import Dropped
from common.shapes.prompts import caption_prompts
from tests.cluster.runs import events, make_config, run
from tests.fakes.rollout import FakeRolloutWorker
from tests.row_faults.rows import delete_picture, good_pairs


def prompt_set(tmp_path: Path, num_lacking: int, num_prompts: int = 12) -> Path:
    """Prompts of the shapes world; the pictures of the first ones are gone."""
    folder = tmp_path / "prompts"
    prompts = caption_prompts("train", num_prompts, 0, ImageStore(tmp_path / "images"))
    write_prompts(folder, prompts)
    for prompt in prompts[:num_lacking]:
        digest = prompt.images[0].sha256
        (file,) = (folder / IMAGES).glob(f"*/{digest}.*")
        file.unlink()
    return folder


def train_config(tmp_path: Path, num_lacking: int, **changes: Any) -> RunConfig:
    """Online pairs about a prompt set, without suites: the first prompt is the one that pushes are proved with."""
    config = make_config(tmp_path, evaluation__suites="[]", **changes)
    prompts = PromptFile(path=str(prompt_set(tmp_path, num_lacking)))
    data = config.data.model_copy(update={"prompts": prompts})
    return config.model_copy(update={"data": data})


def test_train_counts_a_row_and_goes_on(tmp_path: Path) -> None:
    """The first prompt's picture is gone: it is not the probe, and a group of it is a drop in each epoch."""
    config = train_config(tmp_path, num_lacking=1)
    _, run_dir = run(config)
    outcomes = Counter(event["outcome"] for event in events(run_dir, "group"))
    assert outcomes["image_missing"] > 0
    (bad,) = {
        event["id"].partition(":")[2]
        for event in events(run_dir, "group")
        if event["outcome"] == "image_missing"
    }
    epochs = {event["id"].partition(":")[0] for event in events(run_dir, "group")}
    assert outcomes["image_missing"] <= len(epochs)
    assert bad not in {pair.prompt.id for pair in read_pairs(run_dir / "pairs")}
    last_line = read_lines(run_dir / "metrics.jsonl")[-1]
    assert last_line["pairs/dropped/image_missing"] <= outcomes["image_missing"]
    assert last_line["step"] == config.learner.num_steps


def test_an_online_pair_whose_picture_is_gone_by_the_checkpoint(
    tmp_path: Path, store: ImageStore
) -> None:
    recorder = Recorder(tmp_path / "run")
    pairs = good_pairs(store)
    for pair in pairs:
        recorder.group("online", GroupOutcome(pair.id, pairs=(pair,)))
    delete_picture(store.root, pairs[1])
    accepted = recorder.begin_checkpoint(1)
    asyncio.run(recorder.write_pairs(1, accepted))
    recorder.pairs.finish()
    kept = read_pairs(tmp_path / "run" / "pairs")
    assert [pair.id for pair in kept] == ["good-0", "good-2", "good-3"]
    (row,) = events(tmp_path / "run", "row")
    assert (row["id"], row["outcome"]) == ("good-1", "image_missing")


def test_train_stops_when_no_prompt_can_be_encoded(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"got none of 12; .*'image_missing': 12"
    ) as info:
        run(train_config(tmp_path, num_lacking=12))
    assert "\n" not in str(info.value)


def test_train_stops_when_the_engine_refuses_every_prompt(tmp_path: Path) -> None:
    """All but the probe's prompt are gone, and that one is too long for the engine alone."""

    class ShortWorker(FakeRolloutWorker):
        async def generate(self, requests: list[GenerationRequest]) -> list[Any]:
            return [Dropped(r.id, "prompt_too_long", "300 tokens") for r in requests]

    config = train_config(tmp_path, num_lacking=0, loop__stall_limit_s=50)
    expected = r"every one is refused; dropped \{'prompt_too_long': 12\}, such as prompt_too_long \(0:"
    with pytest.raises(UserError, match=expected):
        run(config, rollout=ShortWorker)


def test_train_stops_when_prompts_are_refused_for_several_reasons(
    tmp_path: Path,
) -> None:
    class FussyWorker(FakeRolloutWorker):
        async def generate(self, requests: list[GenerationRequest]) -> list[Any]:
            reasons = ("prompt_too_long", "processor")
            return [
                Dropped(request.id, reasons[request.id[-1] in "02468"], "refused")
                for request in requests
            ]

    config = train_config(tmp_path, num_lacking=0, loop__stall_limit_s=50)
    expected = r"every one is refused; dropped \{'p\w+': \d+, 'p\w+': \d+\}, such as"
    with pytest.raises(UserError, match=expected):
        run(config, rollout=FussyWorker)


def test_drops_by_chance_do_not_count_as_refusals(tmp_path: Path) -> None:
    """Groups that tie were sampled: the run waits until `stall_limit_s`, and its messages have an example."""

    class SilentWorker(FakeRolloutWorker):
        phrases = ("There is a red circle at the top.",)

    config = train_config(tmp_path, num_lacking=0, loop__stall_limit_s=0.5)
    expected = r"dropped \{'(identical|tie)': \d+\}, such as (identical|tie) \(0:\w"
    with pytest.raises(UserError, match=expected):
        run(config, rollout=SilentWorker)


def test_train_stops_when_no_offline_row_is_usable(
    tmp_path: Path, store: ImageStore
) -> None:
    pairs = good_pairs(store)
    write_pairs(tmp_path / "set", [pairs[0]])
    table = pq.read_table(tmp_path / "set" / PAIRS)
    nothing = pa.nulls(1, table.schema.field("chosen").type)
    place = table.schema.get_field_index("chosen")
    table = table.set_column(place, "chosen", nothing)
    pq.write_table(table, tmp_path / "set" / PAIRS)
    config = make_config(
        tmp_path, mixture__online_fraction=0, data__offline__path=tmp_path / "set"
    )

    with pytest.raises(UserError, match=r"none of 1 rows; .*bad_row \(good-0: row 0"):
        training_data.load_offline(config, [])
