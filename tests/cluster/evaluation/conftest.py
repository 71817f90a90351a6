"""The directories of two policies, which a command opens, and fakes in place of what would start engines."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import pytest

from common.config import SHAPES_POLICY
from tests.cluster.evaluation.fake_policies import FakeWorker, LoggingRuntime


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fakes = (
        ("cluster.runtime.ray_runtime", "RayRuntime", LoggingRuntime),
        ("actors.rollout", "RolloutWorker", FakeWorker),
    )
    for module, name, fake in fakes:
        stand_in = types.ModuleType(module)
        setattr(stand_in, name, fake)
        monkeypatch.setitem(sys.modules, module, stand_in)
    # Directories are opened before any worker starts, so these hold a model, which the fakes do not read.
    for name in ("honest", "dreamer"):
        shutil.copytree(SHAPES_POLICY, tmp_path / name)
    return tmp_path
