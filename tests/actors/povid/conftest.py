"""POVID's injection asks a real HTTP server on this machine, without pauses between its tries."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.images import ImageStore
from common.endpoint import chat_endpoint
from common.records import ImageRef, Prompt
from common.shapes.render import blank
from tests.actors.povid.injecting import make_prompt


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_endpoint, "BACKOFF_S", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def image(store: ImageStore) -> ImageRef:
    return store.add(blank())


@pytest.fixture(scope="module")
def prompt(image: ImageRef) -> Prompt:
    """A request for a caption."""
    return make_prompt("Describe the image.", image)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where the replies of a test are kept."""
    return tmp_path / "replies"
