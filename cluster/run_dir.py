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

from common.config import RunConfig
from common.errors import UserError
from common.paths import recover_directory, replace_file


@dataclass(frozen=True, slots=True)
class Saved:
    """A whole checkpoint. `state` is the controller's half (see cluster/loop.py), `learner` the learner's folder."""

    step: int
    learner: Path
    state: dict[str, Any]


class _State(dict[str, Any]):
    """A state.json; a key that is looked up and not there means that the file is not whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(_read_json(path))
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise _unreadable(self._path, f"none with the key {key!r}")


class RunDir:
    """Paths of one run. Opening it checks that it is empty, or that --resume continues the same config."""

    def __init__(self, config: RunConfig, resume: bool) -> None:
        """Claims the directory.

        Raises:
            UserError: it holds another config, or a run and `resume` is off.
        """
        self.path = config.run.dir.resolve()
        resolved = json.loads(config.model_dump_json())
        existing = self.path / "config.json"
        if existing.exists():
            found = _read_json(existing)
            different = _first_difference(resolved, found)
            if different:
                key, ours, theirs = different
                raise UserError(
                    f"run.dir: expected {self.path} to hold this config, got another one ({key} is {theirs!r} there, "
                    f"{ours!r} here); choose another --run.dir"
                )
            if not resume:
                raise UserError(
                    f"run.dir: expected an empty directory, got {self.path} with a run in it; add --resume to continue "
                    "it or choose another --run.dir"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        replace_file(existing, json.dumps(resolved, indent=2) + "\n")

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        return self.path / "policy"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:06d}"

    def latest(self) -> Saved | None:
        """The newest whole checkpoint, None when there is none.

        Raises:
            UserError: the newest one cannot be read.
        """
        recover_directory(self.policy)
        for found in sorted(self.checkpoints.glob("step_*"), reverse=True):
            state = _State(found / "state.json")
            return Saved(int(state["step"]), found / "learner", state)
        return None

    def keep(self, newest: int, best_step: int | None) -> None:
        """Delete all checkpoints but the newest few and the one that validation picked."""
        for old in sorted(self.checkpoints.glob("step_*"))[:-newest]:
            if best_step is None or old != self.checkpoint(best_step):
                shutil.rmtree(old)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(found, dict):
        raise _unreadable(path, f"a {type(found).__name__}")
    return found


def _unreadable(path: Path, got: object) -> UserError:
    return UserError(
        f"{path}: expected a readable JSON object, got {got}; delete its folder to go on without it"
    )


def _first_difference(
    ours: Any, theirs: Any, key: str = ""
) -> tuple[str, Any, Any] | None:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted({*ours, *theirs}):
            found = _first_difference(
                ours.get(name), theirs.get(name), f"{key}.{name}" if key else name
            )
            if found:
                return found
        return None
    return None if ours == theirs else (key, ours, theirs)
