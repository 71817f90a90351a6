"""A job about a model of its own, in small shards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.jobs import shards
from common.config import SHAPES_POLICY
from common.config.jobs import BdhsJobConfig
from tests.cluster.bdhs.scripted import bdhs_config, line_of


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
