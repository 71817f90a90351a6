"""The benchmark of pushes into real engines, on a tiny model and without Ray."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import pytest

from benchmarks.push_engines import measure_transports
from tests.fakes.runtime import LocalRuntime
from tests.tiny_models import tiny_llava


@pytest.mark.real
def test_an_engine_takes_pushes_while_it_samples(tmp_path: Path) -> None:
    arguments = argparse.Namespace(transports=["object_store"], engines=[1], repeats=1)
    measuring = measure_transports(
        arguments, LocalRuntime(), tiny_llava(), "float32", tmp_path
    )
    (row,) = asyncio.run(measuring)
    assert row["transport"] == "object_store"
    assert 0 < row["pause_s"] <= row["load_s"] <= row["push_s"]
