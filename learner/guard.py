"""Gives up on a run whose steps stay not finite, and leaves the last batch behind for inspection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from common.errors import UserError
from common.records import PreferencePair

_PAIRS = TypeAdapter(list[PreferencePair])


class SkipGuard:
    """Counts steps in a row without a finite loss and gradient.

    Args:
        limit: so many stop the run.
        directory: where the batch is written, `skipped_step_N.json`.
        writes: whether this rank writes it.
    """

    def __init__(self, limit: int, directory: Path, writes: bool) -> None:
        self._limit = limit
        self._directory = directory
        self._writes = writes
        self._in_a_row = 0

    def note(self, step: int, skipped: bool, pairs: Sequence[PreferencePair]) -> None:
        """Count a step and its pairs (UserError at the limit)."""
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        if self._in_a_row < self._limit:
            return
        file = self._directory / f"skipped_step_{step}.json"
        if self._writes:
            self._directory.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_PAIRS.dump_json(list(pairs), indent=1))
        raise UserError(
            f"learner step {step}: expected a finite loss and gradient, got {self._in_a_row} steps in a row without "
            f"(learner.max_skipped_steps); look at the last batch in {file} and lower learner.optimizer.lr, or start "
            "from another checkpoint"
        )
