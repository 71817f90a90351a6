"""Pictures of this folder's tests, and an end to what vLLM leaves behind in the process."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from common.data.images import ImageStore


@pytest.fixture(scope="package", autouse=True)
def leave_process_group() -> Iterator[None]:
    """vLLM's in-process engine leaves its process group behind."""
    yield
    # Not imported when no engine was started.
    if "vllm" in sys.modules:
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images"))
