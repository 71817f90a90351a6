"""The run directory: who owns it, what it holds, and where a resumed run continues.

config.json   metrics.jsonl   tensorboard/   journal/events.jsonl   pairs/   evaluation/
checkpoints/step_000050/{learner/, policy/, state.json}   policy/   scorecard.json   samples.html
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.checkpoints.checksums import damage
from cluster.checkpoints.config_changes import Change, changes
from cluster.run.state import RunState
from cluster.runtime.ray_job import check_output_path
from common.config import RunConfig
from common.errors import UserError
from common.machine.folder_lock import FolderLock
from common.paths import recover_directory, replace_file
from learner.checkpoint.header import check_version

log = logging.getLogger("sightline")

MEASURED_FILES = (
    "evaluation/baseline.json",
    "evaluation/baseline.partial.jsonl",
    "evaluation/validation_baseline.json",
    "evaluation/final.json",
    "evaluation/final.partial.jsonl",
    "scorecard.json",
)
"""What was measured of start and final policy, and is not measured again by a resume."""

START_FILES = ("journal/events.jsonl", *MEASURED_FILES)
"""What a run writes before its first step and would read again."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint: the controller's state and the folder of the learner's."""

    learner: Path
    state: RunState


class RunDir:
    """Paths of one run, and their only owner until it is closed. A context manager.

    A start that failed before its first step has left nothing that binds: any config may follow it.
    """

    def __init__(self, config: RunConfig, resume: bool) -> None:
        """Claim the directory.

        Raises:
            UserError: it would be lost with a Ray job, a run is under way in it, it holds another run, or this one
                and `resume` is off.
        """
        check_output_path(config.run.dir, "run.dir")
        self.path = config.run.dir.resolve()
        # Through JSON, so that it compares with what an earlier process wrote.
        resolved = json.loads(config.model_dump_json())
        self.changes: Sequence[Change] = ()
        """What a resume has changed of the config."""
        self._verified: set[Path] = set()
        _make_private(self.path)
        self._lock = FolderLock(self.path, "run.dir")
        try:
            self._take_over(resolved, resume)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the directory up."""
        self._lock.close()

    def _take_over(self, config: dict[str, Any], resume: bool) -> None:
        config_file = self.path / "config.json"
        if config_file.exists():
            existing = _read_json(config_file)
            if self._has_trained() or not _is_run_config(existing):
                self._check_same_run(config, existing, resume)
            elif not resume or existing != config:
                self._forget_failed_start()
        replace_file(config_file, json.dumps(config, indent=2) + "\n")

    def _has_trained(self) -> bool:
        """Whether there is anything of a learner step."""
        metrics = self.path / "metrics.jsonl"
        if metrics.exists() and metrics.stat().st_size > 0:
            return True
        return any(self.checkpoints.glob("step_*")) or self.policy.exists()

    def _forget_failed_start(self) -> None:
        """Delete what a start before the first step wrote, so that the next one does not take it for its own.

        Only files by their full names: the folder may hold other things of the user.
        """
        for name in START_FILES:
            (self.path / name).unlink(missing_ok=True)

    def _check_same_run(
        self,
        config: dict[str, Any],
        existing: dict[str, Any],
        resume: bool,
    ) -> None:
        # First, because another config needs another directory whether `resume` is on or not.
        self.changes = changes(existing, config)
        refused = [change for change in self.changes if not change.is_allowed]
        if refused:
            raise UserError(
                f"run.dir: expected {self.path} to hold this config, got another one ({_told(refused)}); choose "
                "another --run.dir"
            )
        if not resume:
            raise UserError(
                f"run.dir: expected an empty directory, got {self.path} with a run in it; add --resume to continue "
                "it or choose another --run.dir"
            )
        if any(change.is_of_measuring for change in self.changes):
            for name in MEASURED_FILES:
                (self.path / name).unlink(missing_ok=True)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        return self.path / "policy"

    @property
    def journal(self) -> Path:
        return self.path / "journal" / "events.jsonl"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:06d}"

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, None when there is none. Damaged ones newer than it are renamed `damaged_*`.

        None may be written meanwhile: what looks so was left by a process or rank that is gone, and goes.

        Raises:
            UserError: all are damaged.
        """
        self._sweep()
        # A kill may have come between the two renames that replace `policy/`.
        recover_directory(self.policy)
        damaged: list[Path] = []
        error: UserError | None = None
        for folder in sorted(self.checkpoints.glob("step_*"), reverse=True):
            try:
                self.check_whole(folder)
                checkpoint = Checkpoint(folder / "learner", _read_state(folder))
            except UserError as reason:
                damaged.append(folder)
                error = error or reason
                continue
            _set_aside(damaged, folder, error)
            return checkpoint
        # Going on from the start policy would train what was trained before again.
        if error is not None:
            raise error
        return None

    def check_whole(self, folder: Path) -> None:
        """Compare a checkpoint with its checksums, once.

        Raises:
            UserError: a file is damaged, or it is of another version.
        """
        if folder in self._verified:
            return
        check_version(folder / "learner")
        fault = damage(folder)
        if fault is not None:
            raise _unreadable(folder, fault, "a whole checkpoint")
        self._verified.add(folder)

    def keep(self, newest: int, best_step: int | None) -> None:
        """Delete all checkpoints but the newest few, the one that validation picked and those that these few name.

        A resume from one of them, because newer ones are damaged, may end with the best that it names.
        """
        folders = sorted(self.checkpoints.glob("step_*"))
        best_steps = {best_step}
        for folder in folders[-newest:]:
            # From one that cannot be read nothing goes on.
            with suppress(UserError):
                best_steps.add(_read_state(folder).best_step)
        bests = [self.checkpoint(step) for step in best_steps if step is not None]
        for folder in folders[:-newest]:
            if folder not in bests:
                # A kill must not leave half of one under its name.
                going = folder.with_name(f".{folder.name}.old")
                folder.rename(going)
                shutil.rmtree(going)

    def _sweep(self) -> None:
        """Delete what a killed process was writing or deleting."""
        for leftover in self.checkpoints.glob(".step_*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _make_private(folder: Path) -> None:
    """Make a new run directory for its owner's eyes alone; one that is there keeps its mode."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)


def _is_run_config(content: dict[str, Any]) -> bool:
    """Whether a config.json is a run's, and not a model's for example."""
    return all(isinstance(content.get(name), dict) for name in RunConfig.model_fields)


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


def _unreadable(
    path: Path, got: object, expected: str = "a readable JSON object"
) -> UserError:
    return UserError(
        f"{path}: expected {expected}, got {got}; delete its folder to go on without it"
    )


def _set_aside(damaged: Sequence[Path], whole: Path, error: UserError | None) -> None:
    """Rename damaged checkpoints, so that they are not taken for the newest ones again."""
    if damaged:
        log.warning("%s; going on from %s", error, whole.name)
    for folder in damaged:
        aside = folder.with_name(f"damaged_{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def _told(differences: Sequence[Change]) -> str:
    """`KEY is 1 there, 2 here, …`"""
    told = []
    for change in differences:
        told.append(f"{change.key} is {change.before!r} there, {change.now!r} here")
    return ", ".join(told)
