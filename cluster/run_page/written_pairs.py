"""What of a run's pairs only its pair files say: the question of every prompt, and the chosen side of online BDHS."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from common.conversation import conversation_text
from common.data.rows import message_of
from common.errors import Refused
from common.sources import ONLINE_BDHS

COLUMNS = ["id", "source", "prompt", "chosen"]


class WrittenPairs:
    """Follows `pairs/step_*.parquet`, which a run writes with every checkpoint. Safe to use from several threads."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "pairs"
        self._lock = threading.Lock()
        self._read: dict[str, int] = {}
        self._questions: dict[str, str] = {}
        self._chosen: dict[str, str] = {}

    def update(self) -> None:
        """Read the files that are new."""
        with self._lock:
            for path in sorted(self._folder.glob("step_*.parquet")):
                changed_at = path.stat().st_mtime_ns
                if self._read.get(path.name) != changed_at:
                    self._add(path)
                    self._read[path.name] = changed_at

    def question(self, prompt_id: str) -> str | None:
        """What this prompt asks; None where no pair of it is written yet."""
        return self._questions.get(prompt_id)

    def chosen(self, pair_id: str) -> str | None:
        """The chosen side of a pair of online BDHS; None where it is not written yet."""
        return self._chosen.get(pair_id)

    def _add(self, path: Path) -> None:
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(1024, columns=COLUMNS):
                    for row in batch.to_pylist():
                        self._add_row(row)
        # A file that a kill has torn is written again by a resume.
        except (OSError, ValueError, Refused):
            return

    def _add_row(self, row: dict[str, Any]) -> None:
        prompt = row["prompt"]
        if prompt["id"] not in self._questions:
            messages = [message_of(message) for message in prompt["messages"]]
            self._questions[prompt["id"]] = conversation_text(messages)
        if row["source"] == ONLINE_BDHS:
            self._chosen[row["id"]] = row["chosen"]["text"]
