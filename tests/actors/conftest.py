"""Engines are started once for this folder; their tests run on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.data.images import ImageStore
from common.protocols import Engine
from tests.actors.engines import (
    KINDS,
    EnginePool,
    Run,
    leave_vllms_process_group,
)
from tests.tiny_models import tiny_llava


@pytest.fixture(scope="package", autouse=True)
def leave_process_group() -> Iterator[None]:
    yield
    leave_vllms_process_group()


@pytest.fixture(scope="package")
def run() -> Iterator[Run]:
    """Run a coroutine on the folder's loop."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="package")
def policy_path() -> Path:
    return tiny_llava()


@pytest.fixture(scope="package")
def engines(run: Run) -> Iterator[EnginePool]:
    """Engines by model directory and kind, kept until the last test of the folder."""
    pool = EnginePool(run)
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def start_weights(engines: EnginePool) -> Iterator[None]:
    """Leave no pushed weights behind in the shared engines."""
    yield
    engines.restore()


@pytest.fixture(scope="package", params=KINDS)
def engine(
    request: pytest.FixtureRequest,
    engines: EnginePool,
    policy_path: Path,
) -> Engine:
    """Both vLLM engines on the plain tiny policy."""
    shared: Any = engines.get(policy_path, request.param)
    return shared  # type: ignore[no-any-return]
