"""Pairs and drops of a run: filtered, searched, ordered, and one page of them as plain JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from cluster.pages import Span, mark_differences
from cluster.run_page.items import Answer, answers_of, sides_of
from cluster.run_page.store import DROPPED_AT, RunStore
from cluster.run_page.written_pairs import WrittenPairs
from common.errors import UserError

PAGE = 20
"""Pairs of one page."""
MIN_SEARCH = 3
"""Characters; the index knows stretches of three."""
SHOWN_CHARACTERS = 4000
"""Longer texts are cut, and it is said how much is left out."""
WHAT = {
    "pairs": "reason = ''",
    "trained": "reason = '' and step is not null",
    "waiting": "reason = '' and step is null",
    "dropped": "reason != ''",
    "all": "1",
}
"""What is shown -> its condition. `dropped:REASON` is one reason of `dropped`."""
ORDERS = {
    "newest": "place desc",
    "oldest": "place",
    "margin_high": "margin is null, margin desc, place desc",
    "margin_low": "margin is null, margin, place desc",
}
ENDED_AT = f"coalesce(step, {DROPPED_AT})"
"""The step that trained a pair, or before whose end it was dropped or, while it waits, accepted."""
COLUMNS = "id, offset, pair, source, reason, settled, discarded, step, version, margin, score, place"


@dataclass(frozen=True, slots=True)
class Filter:
    """What a person wants to see; None and "" leave a thing open.

    Attributes:
        what: a key of `WHAT`, or `dropped:REASON`.
        step_from, step_to: the step that trained a pair, or before whose end it was dropped.
        margin_from, margin_to: of the judge's scores.
        text: stands in an answer, a note, a reason's detail or the id, in any case of letters.
        order: a key of `ORDERS`.
        page: counted from 0.
    """

    what: str = "pairs"
    source: str = ""
    step_from: float | None = None
    step_to: float | None = None
    margin_from: float | None = None
    margin_to: float | None = None
    text: str = ""
    order: str = "newest"
    page: int = 0

    @classmethod
    def of_words(cls, words: Mapping[str, str]) -> Filter:
        """The filter of an address's query.

        Raises:
            UserError: a value cannot be used.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            word = words.get(field.name, "").strip()
            if not word:
                continue
            kind = str(field.type)
            values[field.name] = word
            if kind.startswith("float"):
                values[field.name] = finite_number(field.name, word)
            elif kind == "int":
                values[field.name] = max(0, int(finite_number(field.name, word)))
        wanted = cls(**values)
        what = wanted.what.partition(":")[0]
        if what not in WHAT or wanted.order not in ORDERS:
            raise UserError(
                f"filter: expected one of {', '.join(WHAT)} in order of {', '.join(ORDERS)}, got {wanted.what[:40]!r} "
                f"and {wanted.order[:40]!r}; choose from the lists"
            )
        return wanted

    def condition(self) -> tuple[str, list[Any]]:
        """The rows of `items` that pass, in SQL, and its values."""
        what, _, reason = self.what.partition(":")
        parts = [WHAT[what]]
        values: list[Any] = []
        bounds = {
            "reason = ?": reason,
            "source = ?": self.source,
            f"{ENDED_AT} >= ?": self.step_from,
            f"{ENDED_AT} <= ?": self.step_to,
            "margin >= ?": self.margin_from,
            "margin <= ?": self.margin_to,
        }
        for part, value in bounds.items():
            if value is not None and value != "":
                parts.append(part)
                values.append(value)
        if len(self.text) >= MIN_SEARCH:
            parts.append("place in (select rowid from texts where texts match ?)")
            # As one phrase: nothing in it is an operator, and none of it ends before its end.
            phrase = self.text.replace('"', '""').replace("\0", "")
            values.append(f'"{phrase}"')
        return " and ".join(parts), values


def page_of(store: RunStore, written: WrittenPairs, wanted: Filter) -> dict[str, Any]:
    """One page: {"total", "page", "num_pages", "items"}."""
    condition, values = wanted.condition()
    counted = store.ask(f"select count(*) from items where {condition}", values)
    total = counted[0][0]
    num_pages = max(1, -(-total // PAGE))
    page = min(wanted.page, num_pages - 1)
    query = (
        f"select {COLUMNS} from items where {condition} order by {ORDERS[wanted.order]} "
        f"limit {PAGE} offset {page * PAGE}"
    )
    rows = store.ask(query, values)
    items = [shown(store, written, row) for row in rows]
    return {"total": total, "page": page, "num_pages": num_pages, "items": items}


def choices(store: RunStore) -> dict[str, Any]:
    """What the filters offer: {"sources": {name: count}, "reasons": {name: count}, "pairs", "trained", "waiting"}."""
    sources = dict(store.ask("select source, count(*) from items group by source"))
    reasons = dict(
        store.ask(
            "select reason, count(*) from items where reason != '' group by reason order by 2 desc"
        )
    )
    counts: dict[str, Any] = {"sources": sources, "reasons": reasons}
    for what in ("pairs", "trained", "waiting"):
        query = f"select count(*) from items where {WHAT[what]}"
        counts[what] = store.ask(query)[0][0]
    return counts


def shown(store: RunStore, written: WrittenPairs, row: Sequence[Any]) -> dict[str, Any]:
    """A row of `COLUMNS` with all that belongs to it: {id, …, "pictures", "sides", "answers"}."""
    names = [name.strip() for name in COLUMNS.split(",")]
    item: dict[str, Any] = dict(zip(names, row, strict=True))
    event = store.line_at(item.pop("offset"))
    number = item.pop("pair")
    item |= {
        "detail": event.get("detail", ""),
        "prompt": event.get("prompt", ""),
        "question": written.question(event.get("prompt", "")),
        "pictures": event.get("images", []),
        "sides": [],
        "answers": [],
    }
    if event.get("outcome") != "pair":
        item["answers"] = _distinct(answers_of(event))
        return item
    chosen, rejected = sides_of(event, number)
    if chosen is None:
        text = written.chosen(item["id"])
        chosen = None if text is None else Answer(text)
    item["sides"] = _sides(chosen, rejected)
    item["answers"] = _distinct(answers_of(event))
    return item


def _sides(chosen: Answer | None, rejected: Answer | None) -> list[dict[str, Any]]:
    if chosen is None or rejected is None:
        known = chosen or rejected
        if known is None:
            return []
        name = "rejected" if chosen is None else "chosen"
        spans = (Span(known.text[:SHOWN_CHARACTERS]),)
        return [_side(name, known, spans)]
    # Only what is shown is compared.
    chosen_spans, rejected_spans = mark_differences(
        chosen.text[:SHOWN_CHARACTERS], rejected.text[:SHOWN_CHARACTERS]
    )
    return [
        _side("chosen", chosen, chosen_spans),
        _side("rejected", rejected, rejected_spans),
    ]


def _side(name: str, answer: Answer, spans: Sequence[Span]) -> dict[str, Any]:
    return {
        "name": name,
        "spans": [[span.text, span.kind] for span in spans],
        "left_out": _left_out(answer),
        "score": answer.score,
        "note": answer.note,
    }


def _distinct(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """The different answers of a group, each with how often it was given."""
    counts = Counter(answer.text for answer in answers)
    distinct: list[dict[str, Any]] = []
    for answer in answers:
        count = counts.pop(answer.text, 0)
        if count:
            distinct.append(
                {
                    "text": answer.text[:SHOWN_CHARACTERS],
                    "left_out": _left_out(answer),
                    "score": answer.score,
                    "note": answer.note,
                    "count": count,
                }
            )
    return distinct


def _left_out(answer: Answer) -> int:
    """Characters that are not shown."""
    return max(0, len(answer.text) - SHOWN_CHARACTERS)


def finite_number(name: str, word: str) -> float:
    """The number that a word of an address stands for.

    Raises:
        UserError: it is none, or no finite one.
    """
    with suppress(ValueError):
        number = float(word)
        if math.isfinite(number):
            return number
    raise UserError(f"{name}: expected a finite number, got {word[:40]!r}; correct it")
