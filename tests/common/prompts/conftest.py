"""A folder of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.common.prompts.layouts import NUM_PICTURES, picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of pictures."""
    target = tmp_path / "data"
    (target / "pictures").mkdir(parents=True)
    for number in range(NUM_PICTURES):
        (target / "pictures" / f"{number}.png").write_bytes(picture(number))
    return target
