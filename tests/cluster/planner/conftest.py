"""Shapes of the real models, each built once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest

from cluster.planner.shape import ModelShape, shape_of
from tests.cluster.planner.model_configs import CONFIGS, write


@pytest.fixture(scope="session")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelShape]:
    """A model's shape by its name."""
    root = tmp_path_factory.mktemp("models")

    @cache
    def named(name: str) -> ModelShape:
        return shape_of(write(name, root))

    return named


@pytest.fixture(scope="session")
def shapes(
    shape: Callable[[str], ModelShape],
) -> Mapping[str, ModelShape]:
    """All shapes by the paths that the presets name."""
    return {str(Path("models") / name): shape(name) for name in CONFIGS}
