"""Limits steps in a row that train on nothing: because loss or gradient is not finite, or without a usable pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from common.errors import UserError
from common.records import Dropped, PreferencePair
from common.row_faults import drop_report

_PAIRS = TypeAdapter(list[PreferencePair])


class SkippedSteps:
    """Counts steps in a row without a finite loss and gradient, and those without a usable pair.

    Args:
        limit: this many in a row stop the run.
        directory: where the last batch is written, `skipped_step_N.json`.
        writes: whether this rank writes it.
        num_steps: of the run; one that is shorter than the limit must not end well without a pair, either.
    """

    def __init__(
        self, limit: int, directory: Path, writes: bool, num_steps: int
    ) -> None:
        self._limit = limit
        self._num_steps = num_steps
        self._directory = directory
        self._writes = writes
        self._not_finite_in_a_row = 0
        self._empty_in_a_row = 0
        self._refused: list[Dropped] = []

    def note(self, step: int, skipped: bool, pairs: Sequence[PreferencePair]) -> None:
        """Count a step that had these pairs.

        Raises:
            UserError: the limit is reached; the pairs are on disk.
        """
        self._empty_in_a_row = 0
        self._refused = []
        if not skipped:
            self._not_finite_in_a_row = 0
            return
        self._not_finite_in_a_row += 1
        if self._not_finite_in_a_row < self._limit:
            return
        file = self._directory / f"skipped_step_{step}.json"
        # All ranks hold the same batch: one writes it, all stop.
        if self._writes:
            self._directory.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_PAIRS.dump_json(list(pairs), indent=1))
        raise UserError(
            f"learner step {step}: expected a finite loss and gradient, got {self._not_finite_in_a_row} steps in a row "
            f"without (learner.max_skipped_steps); look at the last batch in {file} and lower learner.optimizer.lr, or "
            "start from another checkpoint"
        )

    def note_empty(self, step: int, dropped: Sequence[Dropped]) -> None:
        """Count a step whose pairs were all refused.

        Raises:
            UserError: the limit is reached.
        """
        self._empty_in_a_row += 1
        self._refused += dropped
        if self._empty_in_a_row < min(self._limit, self._num_steps):
            return
        raise UserError(
            f"learner step {step}: expected pairs to train on, got {self._empty_in_a_row} batches in a row without "
            f"one (learner.max_skipped_steps), refused {drop_report(self._refused)}; raise model.max_length if pairs "
            "are too long, or look at the pairs"
        )
