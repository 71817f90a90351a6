"""What a run's journal says, in a form that is asked in milliseconds: its pairs and drops as rows of SQLite.

The texts stay in the journal: a row knows where its line begins. What a resume has done again is taken out here by the
rule of `cluster.run.history`.
"""

from __future__ import annotations

import sqlite3
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from cluster.run_page.items import ROW_SOURCE, Item, items_of
from cluster.run_page.lines import GrowingFile, Line, read_at
from common.errors import UserError

Event: TypeAlias = dict[str, Any]
Call: TypeAlias = tuple[str, str, float, float, int]
"""Worker, kind of work, begin, end, count; times in seconds since 1970."""

SCHEMA = """
create table items (
    place integer primary key, id text, offset integer, pair integer, source text, reason text, settled integer,
    discarded integer, step integer, version integer, margin real, score real, time real, ended integer
);
create index items_id on items (id);
create index items_reason on items (reason);
create index items_margin on items (margin);
create virtual table texts using fts5 (text, content = '', tokenize = 'trigram');
"""
"""`settled` is the step before whose end a group came to its outcome, `discarded` the one before whose end a pair of it
was given up after all, `step` the one that trained a pair, `ended` the place in the journal where it was trained or
discarded."""
DROPPED_AT = "coalesce(discarded, settled)"
"""The step before whose end a group or a pair was dropped."""

INSERT = "insert into items values (?, ?, ?, ?, ?, ?, ?, null, null, ?, ?, ?, ?, null)"
KEPT_EVENTS = frozenset(
    (
        "data",
        "start",
        "resume",
        "restart",
        "ended",
        "publish",
        "validation",
        "checkpoint",
        "picked",
        "warning",
        "step",
    )
)
"""What views read of the journal beside groups and calls."""
OF_STEPS = ("step", "validation", "checkpoint", "warning")
"""Events with a `step`, which a resume from an earlier one repeats."""


class RunStore:
    """The journal of one run, as far as `update` has read it. Safe to use from several threads.

    Attributes:
        events: those of `KEPT_EVENTS` by kind, in order.
        work: calls to workers, without those that a resume has begun again.
        num_repeated: groups that were sampled again, since a resume went back behind them.
        revision: another number whenever there is news.
    """

    def __init__(self, run_dir: Path) -> None:
        self.journal = run_dir / "journal" / "events.jsonl"
        self.revision = 0
        self._lock = threading.RLock()
        self._folder = tempfile.TemporaryDirectory(prefix="sightline-page-")
        self._num_bases = 0
        self._begin_again()

    def close(self) -> None:
        """Delete the index."""
        with self._lock:
            self._base.close()
        self._folder.cleanup()

    def _begin_again(self) -> None:
        self._file = GrowingFile(self.journal)
        self.events: dict[str, list[Event]] = defaultdict(list)
        self.work: list[Call] = []
        self.num_repeated = 0
        # Step of a checkpoint -> the last place, and how many calls, that its state holds.
        self._saved: dict[int, tuple[int, int]] = {}
        # Where starts and resumes begin in `work`, and where the newest start does.
        self._cuts: list[int] = []
        self._start_cut = 0
        self._place = 0
        self._step = 0
        self._is_new_start = False
        self._is_training = False
        # A file, since the index of a long run does not fit in memory.
        self._num_bases += 1
        path = Path(self._folder.name) / f"{self._num_bases}.sqlite"
        self._base = sqlite3.connect(path, check_same_thread=False)
        self._base.execute("pragma journal_mode = off")
        self._base.execute("pragma synchronous = off")
        self._base.executescript(SCHEMA)

    @property
    def read_frac(self) -> float:
        """The share of the journal that is read, 0-1."""
        size = self._file.size
        return 1.0 if not size else min(1.0, self._file.offset / size)

    def update(self) -> bool:
        """Read a part of what is new; False when there was nothing.

        Raises:
            UserError: the index cannot be written.
        """
        with self._lock, self._telling():
            if self._file.was_replaced():
                self._base.close()
                self._begin_again()
                self.revision += 1
            before = self._file.offset
            for line in self._file.new_lines():
                # A line of another version, or of a hand: what it says is left out.
                with suppress(KeyError, TypeError, ValueError, IndexError):
                    self._enter(line)
            self._base.commit()
            if self._file.offset == before:
                return False
            self.revision += 1
            return True

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"{self._folder.name}: expected room for the page's index, got {error}; set TMPDIR to another folder"
            ) from error

    def read_all(self) -> None:
        """Read to the end."""
        while self.update():
            pass

    def ask(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query of `items` and `texts`."""
        with self._lock:
            return self._base.execute(query, values).fetchall()

    def line_at(self, offset: int) -> Event:
        """The event whose line begins there; {} for none."""
        return read_at(self.journal, offset)

    def _enter(self, line: Line) -> None:
        event = line.value
        kind = event["event"]
        self._follow_starts(kind, event)
        match kind:
            case "work":
                self._enter_work(event)
            case "group":
                self._enter_items(items_of(event), line.offset, event["time"])
            case "row" if self._is_training:
                row = Item(
                    event["id"], ROW_SOURCE, event["outcome"], text=event["detail"]
                )
                self._enter_items([row], line.offset, event["time"])
            # One that was refused when it came again (`uses`) has been trained on.
            case "discard" if not event.get("uses"):
                self._end(event["id"], event["reason"], discarded=self._step + 1)
            case "step":
                self._enter_step(event)
            case "saving":
                self._saved[event["step"]] = (self._place, len(self.work))
            case "unsaved":
                self._saved.pop(event["step"], None)
        if kind in KEPT_EVENTS:
            self.events[kind].append(event)

    def _follow_starts(self, kind: str, event: Event) -> None:
        """Take out what a resume begins again."""
        # Loading models comes between the two and belongs to the start.
        if kind == "data" or (kind == "start" and self._is_training):
            self._start_cut = len(self.work)
            self._cuts.append(self._start_cut)
        if kind == "start":
            self._is_new_start = self._is_training = True
        elif kind == "resume":
            self._forget_after(event["step"])
            self._is_new_start = False
        elif kind == "data":
            self._is_training = False
        elif kind in ("group", "step") and self._is_new_start:
            # No `resume` came before: the run had no checkpoint, and began again.
            self._forget_after(0)
            self._is_new_start = False

    def _forget_after(self, step: int) -> None:
        place, num_calls = self._saved.get(step, (0, 0))
        self._forget_work(num_calls)
        lost = self._base.execute("delete from items where place > ?", (place,))
        self.num_repeated += lost.rowcount
        waiting = "reason = '', discarded = null, step = null, ended = null"
        self._base.execute(f"update items set {waiting} where ended > ?", (place,))
        for kind in OF_STEPS:
            events = self.events[kind]
            self.events[kind] = [event for event in events if event["step"] <= step]
        self._saved = {saved: at for saved, at in self._saved.items() if saved <= step}
        self._step = step

    def _forget_work(self, num_calls: int) -> None:
        """Go back to so many calls; those since a new start are not what it begins again."""
        end = self._start_cut if self._is_new_start else len(self.work)
        del self.work[num_calls:end]
        self._cuts = [cut for cut in self._cuts if cut < num_calls]
        self._cuts.append(num_calls)

    def _enter_items(self, items: Sequence[Item], offset: int, time: float) -> None:
        for number, item in enumerate(items):
            self._place += 1
            values = (
                self._place,
                item.id,
                offset,
                number,
                item.source,
                item.reason,
                self._step + 1,
                item.version,
                item.margin,
                item.score,
                time,
            )
            self._base.execute(INSERT, values)
            indexed = "insert into texts (rowid, text) values (?, ?)"
            self._base.execute(indexed, (self._place, f"{item.id}\n{item.text}"))

    def _enter_step(self, event: Event) -> None:
        self._step = event["step"]
        for pair_id in event["pairs"]:
            self._end(pair_id, step=self._step)
        # A million ids are in the table already.
        event["pairs"] = len(event["pairs"])

    def _end(
        self,
        pair_id: str,
        reason: str = "",
        step: int | None = None,
        discarded: int | None = None,
    ) -> None:
        """A pair is trained, or discarded for a reason."""
        self._place += 1
        values = (reason, step, discarded, self._place, pair_id)
        self._base.execute(
            "update items set reason = ?, step = ?, discarded = ?, ended = ? where id = ? and +reason = ''",
            values,
        )

    def _enter_work(self, event: Event) -> None:
        end = event["time"]
        begin = end - event["seconds"]
        self.work.append((event["who"], event["what"], begin, end, event["count"]))

    def work_by_start(self) -> list[list[Call]]:
        """`work`, parted where the run was started, or where it went back to a checkpoint."""
        with self._lock:
            bounds = [0, *self._cuts, len(self.work)]
            return [self.work[begin:end] for begin, end in pairwise(bounds)]

    @property
    def started_at(self) -> float:
        """When the newest start began, in seconds since 1970."""
        times = [self.last(kind).get("time", 0.0) for kind in ("data", "start")]
        return float(max(times))

    def picked(self) -> Mapping[str, Any]:
        """What the newest start has picked; {} while it goes on."""
        picked = self.last("picked")
        is_of_this_start = picked and picked["time"] >= self.started_at
        return picked if is_of_this_start else {}

    def last(self, kind: str) -> Mapping[str, Any]:
        """The newest event of a kind; {} for none."""
        events = self.events[kind]
        return events[-1] if events else {}
