"""Reference log-probs of offline pairs: a second epoch runs no reference forward; whatever changes them misses."""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.chat import ChatEncoder
from common.config import RunConfig
from common.data.images import ImageStore
from common.errors import UserError
from common.records import PreferencePair
from learner.batch.collate import Collator
from learner.forward.logps import CompletionLogps
from learner.forward.tree import TreeBatch, tree_batch
from learner.forward.tree_logps import prepare, tree_logps
from learner.learner import Learner
from learner.model.reference_cache import FILE, ReferenceCache, identity
from tests.learner.families import FAMILIES, family
from tests.learner.helpers import LORA, encoded, make_pairs, run_config
from tests.learner.trees import pairs_of, plain

EACH = pytest.mark.parametrize("name", FAMILIES)
TUNINGS = pytest.mark.parametrize("tuning", [None, LORA], ids=["full", "lora"])


def offline(store: ImageStore, num: int, first: int = 0) -> list[PreferencePair]:
    pairs = make_pairs(store, num, first)
    return [replace(pair, weight_version=None) for pair in pairs]


def config_with(
    folder: Path | str,
    tuning: dict[str, Any] | None = None,
    model: Path | None = None,
) -> RunConfig:
    return run_config(tuning=tuning, model=model, fast={"reference_cache": str(folder)})


def counted(config: RunConfig) -> tuple[Learner, list[int]]:
    """A started learner, and the pairs of every reference forward that it runs."""
    trainer, sizes = Learner(config), []
    trainer.start()
    original = trainer.reference.forward

    def forward(batch: Any, *more: Any) -> Any:
        sizes.append(len(batch.pairs))
        return original(batch, *more)

    trainer.reference.forward = forward  # type: ignore[method-assign]
    return trainer, sizes


@TUNINGS
def test_a_second_epoch_runs_no_reference_forward(
    store: ImageStore,
    tmp_path: Path,
    tuning: dict | None,
) -> None:
    """6 pairs in micro-batches of 4 and 2; the second and third epoch train as a run without a cache does."""
    pairs = offline(store, 6)
    trainer, sizes = counted(config_with(tmp_path / "cache", tuning))
    plain, plain_sizes = counted(config_with("off", tuning))
    for step in range(3):
        ours = trainer.step(step, pairs)[0].metrics
        theirs = plain.step(step, pairs)[0].metrics
        assert ours["loss"] == theirs["loss"]
        assert ours["rewards/margins"] == theirs["rewards/margins"]
    assert sizes == [4, 2]
    assert plain_sizes == [4, 2] * 3
    cache = trainer.reference.cache
    assert cache is not None
    assert (cache.num_hits, cache.num_misses) == (12, 6)
    left, right = trainer.publish(1)[1], plain.publish(1)[1]
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


def test_the_next_run_starts_with_it_and_online_pairs_are_not_kept(
    store: ImageStore,
    tmp_path: Path,
) -> None:
    first, _ = counted(config_with(tmp_path))
    mixed = make_pairs(store, 6)  # every second one is online
    first.step(0, mixed)
    first.close()
    second, sizes = counted(config_with(tmp_path))
    second.step(0, mixed)
    assert sizes == [2, 1], "of 4 and 2 pairs, the online ones"


def test_a_changed_image_or_completion_has_another_key(
    store: ImageStore,
    tmp_path: Path,
    collator: Collator,
) -> None:
    (pair,) = encoded(collator, offline(store, 1))
    (other,) = encoded(collator, offline(store, 1, 3))
    prompt = replace(pair.pair.prompt, images=other.pair.prompt.images)
    moved = replace(pair, pair=replace(pair.pair, prompt=prompt))
    cache = ReferenceCache(tmp_path / "cache", 0, "x")
    key = cache.key(pair, pair.chosen)
    assert key == cache.key(replace(pair), pair.chosen)
    others = {cache.key(moved, pair.chosen), cache.key(pair, pair.rejected)}
    assert len({key, *others}) == 3


def test_a_changed_model_processor_or_precision_has_another_identity(
    tmp_path: Path,
    model_path: Path,
) -> None:
    def identity_of(folder: Path) -> str:
        return identity(ChatEncoder(folder, 256), torch.float32)

    original = identity_of(model_path)
    assert identity(ChatEncoder(model_path, 256), torch.bfloat16) != original
    copied = Path(shutil.copytree(model_path, tmp_path / "model"))
    assert identity_of(copied) == original
    file = copied / "model.safetensors"
    weights = load_file(file)
    biases = [name for name in weights if name.endswith("bias")]
    name = next(name for name in biases if "projector" in name)
    save_file(weights | {name: weights[name] + 1e-3}, file, {"format": "pt"})
    assert file.stat().st_size == (model_path / file.name).stat().st_size
    trained = identity_of(copied)
    assert trained != original
    settings = copied / "processor_config.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps(content | {"changed": True}))
    assert identity_of(copied) not in (trained, original)


@EACH
def test_what_comes_from_disk_equals_plain_rows(tmp_path: Path, name: str) -> None:
    """First two pairs are asked for, then all six, twice: from a forward, from both, from disk alone."""
    tiny = family(name)
    model, pairs = copy.deepcopy(tiny.model), pairs_of(tiny)
    prepare(model)

    def forward(batch: TreeBatch) -> CompletionLogps:
        return tree_logps(model, batch)

    cache = ReferenceCache(tmp_path, 0, "x")
    with torch.no_grad():
        expected = plain(tiny.model, pairs)
        for some in (pairs[:2], pairs, pairs):
            logps = cache.logps(tree_batch(some), forward, tree_batch)
    torch.testing.assert_close(logps.summed, expected, atol=1e-9, rtol=1e-9)
    assert (cache.num_hits, cache.num_misses) == (8, 6)
    cache.close()


def test_ranks_read_each_others_files(
    store: ImageStore,
    tmp_path: Path,
    collator: Collator,
) -> None:
    (pair,) = encoded(collator, offline(store, 1))
    one, two = ReferenceCache(tmp_path, 0, "same"), ReferenceCache(tmp_path, 1, "same")
    key, values = one.key(pair, (5, 6)), torch.tensor([-1.5, -2.5])
    assert two.read({0: (key, 2)}) == {}
    one.write({key: values})
    assert two.read({0: (key, 2)})[0].tolist() == [-1.5, -2.5]
    assert two.read({0: (key, 3)}) == {}, (
        "a row that does not fit its completion is missing"
    )
    one.close()
    two.close()


def test_a_foreign_or_torn_file_is_said(tmp_path: Path) -> None:
    file = tmp_path / FILE.format(rank=0)
    file.write_bytes(b"no database at all, but longer than a header " * 10)
    with pytest.raises(UserError, match="set reference_cache = off"):
        ReferenceCache(tmp_path, 0, "x")


def test_what_was_committed_survives_a_crash(tmp_path: Path) -> None:
    """An open transaction is rolled back by the next reader, earlier rows stay."""
    cache = ReferenceCache(tmp_path, 0, "x")
    cache.write({b"k" * 32: torch.tensor([-1.0])})
    crashing = sqlite3.connect(tmp_path / FILE.format(rank=0))
    crashing.execute("INSERT INTO logps VALUES (?, ?)", (b"l" * 32, b"1234"))
    copy = tmp_path / "crashed"
    shutil.copytree(tmp_path, copy, ignore=shutil.ignore_patterns("crashed"))
    with sqlite3.connect(copy / FILE.format(rank=0)) as survivor:
        assert survivor.execute("SELECT count(*) FROM logps").fetchone() == (1,)
    crashing.close()
    cache.close()
