"""One row's fault is that row's drop on every path: the good rows' results stay, the bad row is counted once.

inspect · generate bdhs · generate povid · learner · train · evaluate; vLLM's part: tests/actors/test_row_faults.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.images import ImageStore
from tests.row_faults.rows import fussy_qwen


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fussy_qwen(tmp_path_factory.mktemp("model"))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "pictures")
