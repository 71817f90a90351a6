"""What POVID's injection did, in numbers: a note per row, and their summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from actors.injection import Injection
from common.povid_config import KINDS
from common.records import Dropped

DETAIL_CHARS = 200


def note_of(injection: Injection) -> dict[str, Any]:
    """The part of an injection that is counted, as JSON."""
    dropped = injection.result if isinstance(injection.result, Dropped) else None
    return {
        "id": injection.id,
        "kind": injection.kind,
        "dropped": dropped.reason if dropped else None,
        "detail": dropped.detail[:DETAIL_CHARS] if dropped else None,
        "asked": injection.asked,
    }


def summarise(notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts over all rows.

    `pairs_per_kind` and `dropped_per_kind` are keyed by kind (rows that are no prompt have none), `examples` gives the
    first detail of each drop reason, `num_cache_hits` counts rows answered from an earlier reply.
    """
    pairs = Counter(note["kind"] for note in notes if note["dropped"] is None)
    drops = Counter(note["kind"] for note in notes if note["dropped"] is not None)
    reasons = Counter(note["dropped"] for note in notes if note["dropped"] is not None)
    examples = {
        note["dropped"]: note["detail"]
        for note in reversed(notes)
        if note["dropped"] is not None
    }
    return {
        "num_rows": len(notes),
        "num_pairs": pairs.total(),
        "pairs_per_kind": {kind: pairs[kind] for kind in KINDS},
        "dropped_per_kind": {kind: drops[kind] for kind in KINDS},
        "dropped": dict(sorted(reasons.items())),
        "examples": dict(sorted(examples.items())),
        "num_cache_hits": sum(note["asked"] == "cache" for note in notes),
    }
