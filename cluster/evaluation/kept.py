"""What an unfinished evaluation has got so far: a file of one JSON line per chunk of results.

A killed evaluation that is started again reads it and asks for the rest only. The first line says what the results
belong to: policy, prompts and settings. Another policy's results are never taken for this one's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from pydantic import TypeAdapter

from cluster.evaluation.chunks import KeptResults
from common.errors import UserError
from common.journal import Journal, read_events
from common.records import Dropped, RolloutGroup, Verdict

Result = TypeVar("Result")
Identity: TypeAlias = Mapping[str, str]
"""What results belong to: the name of each part, such as "policy", and its hash or text."""

GROUPS: TypeAdapter[list[RolloutGroup | Dropped]]
GROUPS = TypeAdapter(list[RolloutGroup | Dropped])
SCORES: TypeAdapter[list[tuple[float, ...] | Dropped]]
SCORES = TypeAdapter(list[tuple[float, ...] | Dropped])
VERDICTS: TypeAdapter[list[Verdict | Dropped]]
VERDICTS = TypeAdapter(list[Verdict | Dropped])


class KeptAnswers:
    """The file of one policy's results."""

    def __init__(self, path: Path, identity: Identity) -> None:
        """Open the file or begin it.

        Raises:
            UserError: it holds results of something else.
        """
        self._path = path
        self._results: dict[tuple[str, int], list[Any]] = {}
        begun = False
        for event in read_events(path):
            if event["event"] == "identity":
                _check_identity(path, event["of"], identity)
                begun = True
                continue
            section = event["section"]
            start = event["start"]
            self._results[section, start] = event["results"]
        self._journal = Journal(path)
        if not begun:
            self._journal.write("identity", of=dict(identity))
            self._journal.sync()

    def section(
        self,
        name: str,
        adapter: TypeAdapter[list[Result]],
        keeps: Callable[[Sequence[Result]], bool] = bool,
    ) -> KeptResults[Result]:
        """One list of results. A chunk that `keeps` refuses is asked again after a kill."""
        return _Section(
            self,
            name,
            adapter,
            keeps,
        )

    def read(self, section: str, start: int) -> list[Any] | None:
        """A chunk as plain values, None when it is not there."""
        return self._results.get((section, start))

    def write(self, section: str, start: int, results: list[Any]) -> None:
        """Add a chunk; it is on disk when this returns."""
        self._journal.write(
            "chunk",
            section=section,
            start=start,
            results=results,
        )
        self._journal.sync()

    def close(self) -> None:
        """Leave the file for the next start."""
        self._journal.close()

    def discard(self) -> None:
        """The evaluation is whole and kept elsewhere."""
        self.close()
        self._path.unlink()


class _Section(Generic[Result]):
    """A `KeptResults` in a file of many."""

    def __init__(
        self,
        answers: KeptAnswers,
        name: str,
        adapter: TypeAdapter[list[Result]],
        keeps: Callable[[Sequence[Result]], bool],
    ) -> None:
        self._answers = answers
        self._name = name
        self._adapter = adapter
        self._keeps = keeps

    def get(self, start: int, count: int) -> list[Result] | None:
        plain = self._answers.read(self._name, start)
        if plain is None or len(plain) != count:
            return None
        # Not strict: JSON has lists where the records have tuples.
        return self._adapter.validate_python(plain, strict=False)

    def put(self, start: int, results: Sequence[Result]) -> None:
        if self._keeps(results):
            plain = self._adapter.dump_python(list(results), mode="json")
            self._answers.write(self._name, start, plain)


def _check_identity(path: Path, theirs: Identity, ours: Identity) -> None:
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise UserError(
                f"{path}: expected what is left of an evaluation with this {name}, got another one's; "
                "delete the file to begin again, or write elsewhere"
            )
