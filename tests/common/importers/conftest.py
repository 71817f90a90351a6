"""An image folder, with a way out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.common.importer_cases import PICTURE


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image folder with a.png and a.jpg, a way out of it, and what lies there."""
    images = tmp_path / "images"
    images.mkdir()
    for folder in (images, tmp_path):
        for name in ("a.png", "secret.png", "secret.jpg")[folder != images :]:
            (folder / name).write_bytes(PICTURE)
    (images / "a.jpg").write_bytes(PICTURE)
    (images / "link").symlink_to(tmp_path)
    (images / "loop.png").symlink_to("loop.png")
    return images
