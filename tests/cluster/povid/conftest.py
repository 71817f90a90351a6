"""Small shards, an endpoint without pauses, and prompts with true answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.jobs import shards
from common.data.images import ImageStore
from common.endpoint import chat_endpoint
from common.records import Prompt
from common.shapes.prompts import caption_prompts


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_endpoint, "BACKOFF_S", 0.001)
    monkeypatch.setattr(shards, "SHARD_PROMPTS", 4)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def captions(tmp_path: Path) -> list[Prompt]:
    """30 prompts, no two with the same true answer."""
    prompts = caption_prompts("train", 40, 0, ImageStore(tmp_path / "elsewhere"))
    by_answer = {prompt.reference: prompt for prompt in prompts}
    return list(by_answer.values())[:30]
