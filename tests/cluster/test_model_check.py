"""Every command opens its model directory, and says what is wrong with it, before Ray is asked for anything."""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import evaluate, generate, train
from common.config import SHAPES_POLICY
from tests.cluster.model_commands import (
    evaluate_words,
    generate_words,
    train_words,
)


class NoRay:
    def __init__(self, *_: object) -> None:
        raise AssertionError("Ray was started")


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (train.main, train_words),
        (evaluate.main, evaluate_words),
        (generate.main, generate_words),
    ],
)
def test_a_model_is_proven_before_ray_starts(
    main: Callable[[list[str]], int],
    words: Callable[[Path, Path], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in = types.ModuleType("cluster.runtime.ray_runtime")
    stand_in.RayRuntime = NoRay  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cluster.runtime.ray_runtime", stand_in)
    model = tmp_path / "model"
    shutil.copytree(SHAPES_POLICY, model)
    # The control: a sound model gets as far as Ray.
    if main is train.main:
        # A run that fails says so in one line.
        assert main(words(model, tmp_path / "sound")) == 1
        assert "Ray was started" in capsys.readouterr().err
    else:
        with pytest.raises(AssertionError, match="Ray was started"):
            main(words(model, tmp_path / "sound"))
    (model / "chat_template.jinja").unlink()
    assert main(words(model, tmp_path / "broken")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: model.path {model}: expected a chat template")
