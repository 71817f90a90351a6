"""A judge that a user writes."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from common.config import PythonJudge
from tests.reward.python_judge.asking import Write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a user's file and returns the settings of its `judge`, or of another name."""

    def settings(code: str, name: str = "judge", **keys: Any) -> PythonJudge:
        path = tmp_path / "my_judge.py"
        path.write_text(dedent(code).lstrip())
        return PythonJudge(target=f"{path}:{name}", **keys)

    return settings
