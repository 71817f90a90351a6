"""Pictures of this folder's tests, and an end to what vLLM leaves behind in the process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.data.images import ImageStore
from tests.actors.engines import leave_vllms_process_group


@pytest.fixture(scope="package", autouse=True)
def leave_process_group() -> Iterator[None]:
    yield
    leave_vllms_process_group()


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images"))
