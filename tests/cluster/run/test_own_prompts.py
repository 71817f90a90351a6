"""A run on prompts of the user's own: JSON lines whose other columns are the truth, and rows that cannot be used."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.run.auditing import audit
from common.config import Data, RunConfig
from common.data.datasets import PAIRS, read_pairs
from common.data.images import ImageStore
from common.data.rows import PAIR_SCHEMA
from common.metrics import read_lines
from common.shapes.prompts import caption_prompts
from tests.cluster.runs import (
    STEPS,
    events,
    killed_at,
    make_config,
    offline_set,
    run,
    trained_pairs,
)

NUM_PROMPTS = 12


def own_prompts(folder: Path, num_broken: int = 0) -> Path:
    """Captions of the shapes world as a user might have them; the pictures of the first ones are pages of text."""
    store = ImageStore(folder / "pictures")
    lines = []
    for number, prompt in enumerate(caption_prompts("train", NUM_PROMPTS, 0, store)):
        picture = Path(prompt.images[0].path)
        if number < num_broken:
            picture.write_text("<html></html>")
        row = {
            **(prompt.truth or {}),
            "id": f"mine-{number}",
            "image": str(picture.relative_to(folder)),
            "question": prompt.messages[0].parts[-1].text,
            "answer": prompt.reference,
        }
        lines.append(json.dumps(row))
    path = folder / "mine.jsonl"
    path.write_text("\n".join([*lines, '{"image": "x.png"}']) + "\n")
    return path


def own_config(tmp_path: Path, num_broken: int = 0, **data: Any) -> RunConfig:
    """Prompts of the user's own; `data` are further settings of that section."""
    config = make_config(tmp_path, evaluation__suites="[]")
    prompts = own_prompts(tmp_path / "mine", num_broken)
    section = Data.model_validate({"prompts": str(prompts), **data})
    return config.model_copy(update={"data": section})


def prompt_ids(run_dir: Path) -> set[str]:
    """Of all groups."""
    return {event["id"].partition(":")[2] for event in events(run_dir, "group")}


def test_a_run_on_json_lines_and_what_it_did_not_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run_dir = run(own_config(tmp_path, num_broken=2))
    (row,) = events(run_dir, "row")
    assert (row["id"], row["outcome"]) == ("prompts/12", "prompt_none")
    (data,) = events(run_dir, "data")
    assert (data["prompts"], data["offline"]) == (NUM_PROMPTS, 0)
    assert data["dropped"] == {"prompt_none": 1}
    assert data["examples"]["prompt_none"].startswith("prompts/12: expected a question")
    outcomes = Counter(event["outcome"] for event in events(run_dir, "group"))
    assert outcomes["image_corrupt"] > 0
    broken = {"prompts/0:mine-0", "prompts/1:mine-1"}
    for event in events(run_dir, "group"):
        is_broken = event["id"].partition(":")[2] in broken
        assert is_broken == (event["outcome"] == "image_corrupt")
    pairs = read_pairs(run_dir / "pairs")
    assert pairs
    assert broken.isdisjoint(pair.prompt.id for pair in pairs)
    (unused,) = events(run_dir, "unused")
    assert unused["dropped"]["image_corrupt"] >= 1
    assert "an HTML page" in unused["examples"]["image_corrupt"]
    printed = capsys.readouterr().out
    assert "data: 12 prompts, 0 offline pairs" in printed
    assert "data: 1 rows not used, {'prompt_none': 1}, such as prompt_none" in printed
    assert "image_corrupt (0:prompts/" in printed


def test_kill_and_resume(tmp_path: Path) -> None:
    config = own_config(tmp_path, num_broken=1)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(5))
    _, run_dir = run(config, resume=True)
    trained = trained_pairs(run_dir)
    assert len(trained) == STEPS * config.learner.global_batch
    assert len(set(trained)) == len(trained)


def test_what_is_held_out_is_not_sampled(tmp_path: Path) -> None:
    _, run_dir = run(own_config(tmp_path, validation=4))
    (data,) = events(run_dir, "data")
    assert data["prompts"] == NUM_PROMPTS - 4
    assert len(prompt_ids(run_dir)) == NUM_PROMPTS - 4


def test_an_offline_pair_that_cannot_be_used_is_passed_over(tmp_path: Path) -> None:
    folder = Path(offline_set(tmp_path / "set", "bdhs", 6))
    pairs = read_pairs(folder)
    _break_path(folder)
    config = make_config(
        tmp_path,
        mixture__online_fraction=0,
        data__offline__path=folder,
        evaluation__suites="[]",
    )
    _, run_dir = run(config)
    trained = trained_pairs(run_dir)
    assert len(trained) == STEPS * config.learner.global_batch
    assert pairs[0].id not in trained
    rows = events(run_dir, "row")
    assert {(row["id"], row["outcome"]) for row in rows} == {
        (pairs[0].id, "path_outside")
    }
    last_line = read_lines(run_dir / "metrics.jsonl")[-1]
    assert last_line["pairs/dropped/path_outside"] == len(rows)


def _break_path(folder: Path) -> None:
    """Let the picture of the first pair lie outside of the set."""
    rows = pq.read_table(folder / PAIRS).to_pylist()
    rows[0]["prompt"]["images"][0]["path"] = "../../secret.png"
    table = pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)
    pq.write_table(table, folder / PAIRS)


def test_a_resume_with_a_changed_prompt_file_repeats_no_group(tmp_path: Path) -> None:
    """Rows are gone and others are new: what was finished is read from the journal."""
    config = own_config(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, learner=killed_at(6))
    prompts = tmp_path / "mine" / "mine.jsonl"
    lines = prompts.read_text().splitlines()
    new = json.loads(lines[0]) | {"id": "mine-new"}
    prompts.write_text("\n".join([*lines[:9], json.dumps(new)]) + "\n")
    _, run_dir = run(config, resume=True)
    assert audit(run_dir).faults == []
    assert "prompts/9:mine-new" in prompt_ids(run_dir)
    trained = trained_pairs(run_dir)
    assert len(set(trained)) == len(trained) == STEPS * 4
