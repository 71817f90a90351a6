"""Counts of POVID's injection: a note per row, and the summary of all notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from actors.povid.injection import Injection
from common.config.povid import KINDS
from common.records import Dropped

DETAIL_CHARS = 200
Note: TypeAlias = Mapping[str, Any]
"""What is counted of one row, as JSON."""


def note_of(injection: Injection) -> Note:
    """The part of an injection that is counted, as JSON."""
    reason = None
    detail = None
    if isinstance(injection.result, Dropped):
        reason = injection.result.reason
        detail = injection.result.detail[:DETAIL_CHARS]
    return {
        "id": injection.id,
        "kind": injection.kind,
        "dropped": reason,
        "detail": detail,
        "asked": injection.asked,
    }


def summarise(notes: Sequence[Note]) -> dict[str, Any]:
    """Counts over all rows.

    Returns:
        `pairs_per_kind`, `dropped_per_kind`: by kind of error. Unreadable rows have no kind and are in neither.
        `examples`: the first detail of each drop reason.
        `num_cache_hits`: rows answered from an earlier reply.
        Also `num_rows`, `num_pairs` and `dropped` by reason.
    """
    num_cache_hits = 0
    pairs: Counter[str | None] = Counter()
    drops: Counter[str | None] = Counter()
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for note in notes:
        num_cache_hits += note["asked"] == "cache"
        reason = note["dropped"]
        if reason is None:
            pairs[note["kind"]] += 1
            continue
        drops[note["kind"]] += 1
        reasons[reason] += 1
        examples.setdefault(reason, note["detail"])
    return {
        "num_rows": len(notes),
        "num_pairs": pairs.total(),
        # Every kind has a count, be it 0.
        "pairs_per_kind": {kind: pairs[kind] for kind in KINDS},
        "dropped_per_kind": {kind: drops[kind] for kind in KINDS},
        "dropped": dict(sorted(reasons.items())),
        "examples": dict(sorted(examples.items())),
        "num_cache_hits": num_cache_hits,
    }
