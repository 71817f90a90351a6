"""The run directory: who owns it, what it holds, and where a resumed run continues.

config.json   metrics.jsonl   tensorboard/   journal/events.jsonl   pairs/   evaluation/
checkpoints/step_000050/{learner/, policy/, state.json}   policy/   scorecard.json   samples.html
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.run.state import RunState
from common.config import RunConfig
from common.errors import UserError
from common.paths import recover_directory, replace_file


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint: the controller's state and the folder of the learner's."""

    learner: Path
    state: RunState


class RunDir:
    """Paths of one run. Opening it checks that it is empty, or that --resume continues the same config."""

    def __init__(self, config: RunConfig, resume: bool) -> None:
        """Claim the directory.

        Raises:
            UserError: it holds another config, or a run and `resume` is off.
        """
        self.path = config.run.dir.resolve()
        # Through JSON, so that it compares with what an earlier process wrote.
        resolved = json.loads(config.model_dump_json())
        config_file = self.path / "config.json"
        if config_file.exists():
            self._check_same_run(resolved, _read_json(config_file), resume)
        self.path.mkdir(parents=True, exist_ok=True)
        replace_file(config_file, json.dumps(resolved, indent=2) + "\n")

    def _check_same_run(
        self,
        config: dict[str, Any],
        existing: dict[str, Any],
        resume: bool,
    ) -> None:
        # First, because another config needs another directory whether `resume` is on or not.
        difference = _first_difference(config, existing)
        if difference is not None:
            key, ours, theirs = difference
            raise UserError(
                f"run.dir: expected {self.path} to hold this config, got another one ({key} is {theirs!r} there, "
                f"{ours!r} here); choose another --run.dir"
            )
        if not resume:
            raise UserError(
                f"run.dir: expected an empty directory, got {self.path} with a run in it; add --resume to continue "
                "it or choose another --run.dir"
            )

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        return self.path / "policy"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:06d}"

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, None when there is none.

        Raises:
            UserError: the newest one cannot be read.
        """
        # A kill may have come between the two renames that replace `policy/`.
        recover_directory(self.policy)
        folders = sorted(self.checkpoints.glob("step_*"))
        if not folders:
            return None
        return Checkpoint(folders[-1] / "learner", _read_state(folders[-1]))

    def keep(self, newest: int, best_step: int | None) -> None:
        """Delete all checkpoints but the newest few and the one that validation picked."""
        for folder in sorted(self.checkpoints.glob("step_*"))[:-newest]:
            if best_step is None or folder != self.checkpoint(best_step):
                shutil.rmtree(folder)


def _read_state(folder: Path) -> RunState:
    path = folder / "state.json"
    try:
        return RunState.model_validate(_read_json(path))
    except ValidationError as error:
        raise _unreadable(path, _describe(error)) from error


def _describe(error: ValidationError) -> str:
    """One line: the keys that are missing, or the first one that is wrong."""
    missing = []
    for problem in error.errors():
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] != "missing":
            return f"one with a wrong {key!r} ({problem['msg']})"
        missing.append(repr(key))
    return f"one without {', '.join(missing)}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise _unreadable(path, f"a {type(content).__name__}")
    return content


def _unreadable(path: Path, got: object) -> UserError:
    return UserError(
        f"{path}: expected a readable JSON object, got {got}; delete its folder to go on without it"
    )


def _first_difference(
    ours: Any,
    theirs: Any,
    key: str = "",
) -> tuple[str, Any, Any] | None:
    """The first key path whose values differ, with both values."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return None if ours == theirs else (key, ours, theirs)
    for name in sorted({*ours, *theirs}):
        path = f"{key}.{name}" if key else name
        difference = _first_difference(ours.get(name), theirs.get(name), path)
        if difference is not None:
            return difference
    return None
