"""Engines are started once for this folder; their tests run on one event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from common.config import EngineOptions, Model, Rollout
from common.images import ImageStore
from common.protocols import Engine
from tests.tiny_models import TinyLlava, tiny_llava

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture(scope="package", autouse=True)
def leave_process_group() -> Iterator[None]:
    """vLLM's in-process engine leaves its process group behind, and DeepSpeed's tests need one of their own."""
    yield
    if "vllm" in sys.modules:
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


@pytest.fixture(scope="package")
def run() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Run a coroutine on the folder's loop."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="package")
def policy_path() -> Path:
    return tiny_llava()


def start(path: Path, kind: str, max_length: int = 256) -> Any:
    """A vLLM engine; small blocks, so that short prompts do use the prefix cache."""
    from actors.engines import make_engine

    model = Model(path=str(path), max_length=max_length)
    rollout = Rollout(
        deterministic=kind == "stepped",
        engine=EngineOptions(block_size=32, kv_cache_bytes=32 << 20),
    )
    return make_engine(model, rollout, timeout_s=120)


@pytest.fixture(scope="package")
def start_engine(run: Run[Any]) -> Iterator[Callable[[TinyLlava, str], Engine]]:
    """Engines by recipe and kind, kept until the session ends."""
    engines: dict[tuple[TinyLlava, str], Any] = {}

    async def make(recipe: TinyLlava, kind: str) -> Any:
        return start(tiny_llava(recipe), kind)

    def get(recipe: TinyLlava, kind: str) -> Engine:
        if (recipe, kind) not in engines:
            engines[recipe, kind] = run(make(recipe, kind))
        return engines[recipe, kind]  # type: ignore[no-any-return]

    yield get
    for engine in engines.values():
        run(engine.close())


@pytest.fixture(scope="package", params=["stepped", "async"])
def engine(
    request: pytest.FixtureRequest, start_engine: Callable[[TinyLlava, str], Engine]
) -> Engine:
    """Both vLLM engines on the plain tiny policy."""
    return start_engine(TinyLlava(), request.param)
