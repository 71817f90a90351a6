from __future__ import annotations

from pathlib import Path

import pytest
import torch

import learner.forward.onednn
import learner.forward.tree_attention
from common.chat import ChatEncoder
from common.data.images import ImageStore
from learner.batch.collate import Collator
from tests.tiny_models import tiny_llava


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def model_path() -> Path:
    return tiny_llava()


@pytest.fixture
def collator(model_path: Path) -> Collator:
    return Collator(ChatEncoder(model_path, max_length=256))


@pytest.fixture
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may go through oneDNN does, however little it is."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(learner.forward.onednn, "MIN_MULTIPLY_ADDS", 1)


@pytest.fixture(params=["one function", "torch's"])
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways through a tree: as on CPUs, and as elsewhere or with dropout."""
    if request.param == "torch's":
        monkeypatch.setattr(
            learner.forward.tree_attention, "use_cpu_kernel", lambda *_: False
        )
