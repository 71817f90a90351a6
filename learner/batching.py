"""How a global batch is split: by rank, then into micro-batches, the same number on every rank.

Ranks that hold fewer pairs (some were refused), or whose micro-batch has no image while others have one, get a
filler pair of weight 0: collectives inside forward and backward (ZeRO-2, ZeRO-3) then meet on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.records import Dropped, PreferencePair
from learner.collate import Collator, EncodedPair
from learner.ranks import gather


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Pairs of one forward; the last `num_fillers` of them weigh nothing."""

    pairs: tuple[EncodedPair, ...]
    num_fillers: int = 0

    @property
    def weights(self) -> list[float]:
        """1 for a pair that counts, 0 for a filler."""
        return [1.0] * (len(self.pairs) - self.num_fillers) + [0.0] * self.num_fillers


class PairSize(NamedTuple):
    """Tokens of a pair in a forward: of its prompt, unless one of the same key is there already, and all others."""

    key: int
    prompt: int
    others: int


@dataclass(frozen=True, slots=True)
class MicroSize:
    """Limits of one forward: pairs, and tokens if not 0 (a single pair may be larger, it is never cut)."""

    pairs: int
    tokens: int = 0

    def cut(self, sizes: Sequence[PairSize]) -> list[slice]:
        """Runs of consecutive pairs; with a token limit `pairs` does not bind."""
        if not self.tokens:
            return [
                slice(start, start + self.pairs)
                for start in range(0, len(sizes), self.pairs)
            ]
        cuts, start, filled, seen = [], 0, 0, set[int]()
        for index, (key, prompt, others) in enumerate(sizes):
            own = others if key in seen else prompt + others
            if index > start and filled + own > self.tokens:
                cuts.append(slice(start, index))
                start, filled, seen, own = index, 0, set(), prompt + others
            filled += own
            seen.add(key)
        return [*cuts, slice(start, len(sizes))] if sizes else []


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """This rank's micro-batches; `num_pairs` and `dropped` are of the whole global batch, equal on all ranks."""

    micro_batches: list[MicroBatch]
    num_pairs: int
    dropped: list[Dropped]


def plan_batch(
    pairs: Sequence[PreferencePair],
    collator: Collator,
    size: MicroSize,
    rank: int,
    world_size: int,
) -> BatchPlan:
    """Encode this rank's share, agree on what is refused, and cut the share into micro-batches (collective)."""
    encoded = {
        index: collator.encode(pairs[index])
        for index in range(rank, len(pairs), world_size)
    }
    mine = [pair for pair in encoded.values() if isinstance(pair, EncodedPair)]
    facts = {
        index: pair
        if isinstance(pair, Dropped)
        else (pair.has_media, _size(pair, index, collator.tree))
        for index, pair in encoded.items()
    }
    known = {
        index: fact
        for part in gather(facts, world_size)
        for index, fact in part.items()
    }
    dropped = [fact for _, fact in sorted(known.items()) if isinstance(fact, Dropped)]
    accepted = {
        index: fact
        for index, fact in sorted(known.items())
        if not isinstance(fact, Dropped)
    }
    if not accepted:
        return BatchPlan([], 0, dropped)
    cuts = [
        size.cut(
            [
                pair_size
                for index, (_, pair_size) in accepted.items()
                if index % world_size == other
            ]
        )
        for other in range(world_size)
    ]
    if world_size == 1:
        return BatchPlan(split(mine, cuts[0], None), len(accepted), dropped)
    filler_index = next(
        (index for index, (has_media, _) in accepted.items() if has_media),
        next(iter(accepted)),
    )
    filler = encoded.get(filler_index) or collator.encode(pairs[filler_index])
    assert isinstance(filler, EncodedPair), (
        f"ranks disagree on pair {pairs[filler_index].id}: {filler}"
    )
    missing = max(map(len, cuts)) - len(cuts[rank])
    return BatchPlan(
        split(mine, [*cuts[rank], *[slice(0, 0)] * missing], filler),
        len(accepted),
        dropped,
    )


def _size(pair: EncodedPair, index: int, tree: bool) -> PairSize:
    """A tree has equal prompts once, rows have none in common. Keys are compared with those of the same rank only."""
    prompt = len(pair.prompt.token_ids)
    return PairSize(
        hash(pair.prompt_key) if tree else index, prompt, pair.num_tokens - prompt
    )


def split(
    pairs: Sequence[EncodedPair], cuts: Sequence[slice], filler: EncodedPair | None
) -> list[MicroBatch]:
    """A micro-batch per cut, none without a row, none without wanted media."""
    batches = []
    for cut in cuts:
        chunk = tuple(pairs[cut])
        lacks_media = (
            filler is not None
            and filler.has_media
            and not any(pair.has_media for pair in chunk)
        )
        if filler is not None and (not chunk or lacks_media):
            batches.append(MicroBatch((*chunk, filler), 1))
        else:
            batches.append(MicroBatch(chunk))
    return batches
