"""Reference log-probs of offline pairs: a second epoch runs no reference forward; whatever changes them misses."""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.chat import ChatEncoder
from common.config import RunConfig
from common.data.images import ImageStore
from common.errors import UserError
from learner.batch.collate import Collator
from learner.forward.logps import CompletionLogps
from learner.forward.tree import TreeBatch, tree_batch
from learner.forward.tree_logps import prepare, tree_logps
from learner.learner import Learner
from learner.model.reference_cache import FILE, ReferenceCache, identity
from tests.learner.families import FAMILIES, family
from tests.learner.helpers import (
    TUNINGS,
    assert_same_arrays,
    encoded,
    make_pairs,
    offline,
    run_config,
    started,
    train,
    weights_of,
)
from tests.learner.trees import pairs_of, plain

EACH_FAMILY = pytest.mark.parametrize("name", FAMILIES)


def config_with(
    folder: Path | str,
    tuning: dict[str, Any] | None = None,
    model: Path | None = None,
) -> RunConfig:
    return run_config(tuning=tuning, model=model, fast={"reference_cache": str(folder)})


def counted(config: RunConfig) -> tuple[Learner, list[int]]:
    """A started learner, and the pairs of every reference forward that it runs."""
    trainer = started(config)
    sizes: list[int] = []
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
    batches = [offline(make_pairs(store, 6))] * 3
    cached, sizes = counted(config_with(tmp_path / "cache", tuning))
    uncached, uncached_sizes = counted(config_with("off", tuning))
    cached_metrics = train(cached, batches)
    uncached_metrics = train(uncached, batches)
    for ours, theirs in zip(cached_metrics, uncached_metrics, strict=True):
        assert ours["loss"] == theirs["loss"]
        assert ours["rewards/margins"] == theirs["rewards/margins"]
    assert sizes == [4, 2]
    assert uncached_sizes == [4, 2] * 3
    cache = cached.reference.cache
    assert cache is not None
    assert (cache.num_hits, cache.num_misses) == (12, 6)
    assert_same_arrays(weights_of(cached), weights_of(uncached))


def test_the_next_run_starts_with_it_and_online_pairs_are_not_kept(
    store: ImageStore,
    tmp_path: Path,
) -> None:
    first, _ = counted(config_with(tmp_path))
    # Every second one is online.
    mixed = make_pairs(store, 6)
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
    pair, other = encoded(collator, offline(make_pairs(store, 2)))
    with_images_of_other = replace(pair.pair.prompt, images=other.pair.prompt.images)
    record = replace(pair.pair, prompt=with_images_of_other)
    another_image = replace(pair, pair=record)
    cache = ReferenceCache(tmp_path / "cache", 0, "x")
    keys = {
        cache.key(pair, pair.chosen),
        cache.key(another_image, pair.chosen),
        cache.key(pair, pair.rejected),
    }
    assert len(keys) == 3
    equal_pair = replace(pair)
    assert cache.key(equal_pair, pair.chosen) in keys


def identity_of(folder: Path) -> str:
    return identity(ChatEncoder(folder, 256), torch.float32)


@pytest.fixture
def copied(model_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(model_path, tmp_path / "model"))


def test_another_precision_has_another_identity(model_path: Path) -> None:
    in_bfloat16 = identity(ChatEncoder(model_path, 256), torch.bfloat16)
    assert in_bfloat16 != identity_of(model_path)


def test_a_copy_of_a_model_has_its_identity(model_path: Path, copied: Path) -> None:
    assert identity_of(copied) == identity_of(model_path)


def test_other_weights_have_another_identity(model_path: Path, copied: Path) -> None:
    """One bias of the projector moves by a thousandth; the file's size stays."""
    file = copied / "model.safetensors"
    weights = load_file(file)
    biases = [name for name in weights if name.endswith("bias")]
    name = next(name for name in biases if "projector" in name)
    weights[name] = weights[name] + 1e-3
    save_file(weights, file, {"format": "pt"})
    assert file.stat().st_size == (model_path / file.name).stat().st_size
    assert identity_of(copied) != identity_of(model_path)


def test_another_processor_has_another_identity(
    model_path: Path,
    copied: Path,
) -> None:
    settings = copied / "processor_config.json"
    content = json.loads(settings.read_text())
    content["changed"] = True
    settings.write_text(json.dumps(content))
    assert identity_of(copied) != identity_of(model_path)


@EACH_FAMILY
def test_what_comes_from_disk_equals_plain_rows(tmp_path: Path, name: str) -> None:
    """First two pairs are asked for, then all six, twice: from a forward, from both, from disk alone."""
    tiny = family(name)
    pairs = pairs_of(tiny)
    model = copy.deepcopy(tiny.model)
    prepare(model)

    def forward(batch: TreeBatch) -> CompletionLogps:
        return tree_logps(model, batch)

    cache = ReferenceCache(tmp_path, 0, "x")
    with torch.no_grad():
        expected = plain(tiny.model, pairs)
        for asked_for in (pairs[:2], pairs, pairs):
            logps = cache.logps(tree_batch(asked_for), forward, tree_batch)
    torch.testing.assert_close(logps.summed, expected, atol=1e-9, rtol=1e-9)
    assert (cache.num_hits, cache.num_misses) == (8, 6)
    cache.close()


def test_ranks_read_each_others_files(
    store: ImageStore,
    tmp_path: Path,
    collator: Collator,
) -> None:
    (pair,) = encoded(collator, offline(make_pairs(store, 1)))
    first = ReferenceCache(tmp_path, 0, "same")
    second = ReferenceCache(tmp_path, 1, "same")
    key = first.key(pair, (5, 6))
    of_two_tokens = {0: (key, 2)}
    assert second.read(of_two_tokens) == {}
    first.write({key: torch.tensor([-1.5, -2.5])})
    assert second.read(of_two_tokens)[0].tolist() == [-1.5, -2.5]
    # A value that does not fit its completion is missing.
    of_three_tokens = {0: (key, 3)}
    assert second.read(of_three_tokens) == {}
    first.close()
    second.close()


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
