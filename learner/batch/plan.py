"""How a global batch is split: by rank, then into micro-batches, the same number on every rank.

Ranks that hold fewer pairs (some were refused), or whose micro-batch has no image while others have one, get a
filler pair of weight 0: collectives inside forward and backward (ZeRO-2, ZeRO-3) then meet on all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.errors import Refused, UserError
from common.records import Dropped, PreferencePair
from common.row_faults import drop_report, outside_embedding
from learner.batch.collate import Collator, EncodedPair
from learner.engines.ranks import gather


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Pairs of one forward; the last `num_fillers` of them weigh nothing."""

    pairs: tuple[EncodedPair, ...]
    num_fillers: int = 0

    @property
    def counted(self) -> tuple[EncodedPair, ...]:
        """The pairs without fillers."""
        return self.pairs[: len(self.pairs) - self.num_fillers]


class PairSize(NamedTuple):
    """Tokens that a pair adds to a forward: `prompt` unless a pair of the same key is in it already, and `others`."""

    key: int
    prompt: int
    others: int


@dataclass(frozen=True, slots=True)
class MicroSize:
    """Limits of one forward: pairs, and tokens if not 0 (a single pair may be larger, it is never cut)."""

    pairs: int
    tokens: int = 0

    def cut(self, sizes: Sequence[PairSize]) -> list[slice]:
        """Cut into runs of consecutive pairs; with a token limit the number of pairs is not limited."""
        if self.tokens:
            return self._cut_by_tokens(sizes)
        starts = range(0, len(sizes), self.pairs)
        return [slice(start, start + self.pairs) for start in starts]

    def _cut_by_tokens(self, sizes: Sequence[PairSize]) -> list[slice]:
        cuts: list[slice] = []
        start, num_tokens = 0, 0
        prompts: set[int] = set()
        for index, (key, prompt, others) in enumerate(sizes):
            added = others if key in prompts else prompt + others
            # A pair that is larger than the limit gets a forward of its own.
            if index > start and num_tokens + added > self.tokens:
                cuts.append(slice(start, index))
                start, num_tokens, added = index, 0, prompt + others
                prompts = set()
            num_tokens += added
            prompts.add(key)
        if sizes:
            cuts.append(slice(start, len(sizes)))
        return cuts


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How a global batch is trained on; all but `micro_batches` is equal on all ranks.

    Args:
        micro_batches: of this rank.
        pairs: all that are trained on, in the order of the global batch.
        rows: the same pairs rank by rank: the order of figures that are gathered from all ranks.
        dropped: pairs that cannot be trained on.
    """

    micro_batches: list[MicroBatch]
    pairs: list[PreferencePair]
    rows: list[PreferencePair]
    dropped: list[Dropped]


def encode_row(pair: PreferencePair, collator: Collator) -> EncodedPair | Dropped:
    """The pair as tensors, or why this pair alone is left out; reasons as of `Collator.encode`, and `token_unknown`."""
    try:
        encoded = collator.encode(pair)
    except Refused as error:
        return Dropped(pair.id, error.reason, str(error))
    if isinstance(encoded, Dropped):
        return encoded
    encoder = collator.encoder
    num_rows = encoder.config.get_text_config().vocab_size
    token_ids = {*encoded.prompt.token_ids, *encoded.chosen, *encoded.rejected}
    # Features take the place of media tokens, so these need no row.
    outside = outside_embedding(token_ids.difference(encoder.media_token_ids), num_rows)
    if outside is not None:
        detail = f"expected token ids from 0 to {num_rows - 1} (rows of the model's embedding), got {outside}"
        return Dropped(pair.id, "token_unknown", detail)
    return encoded


class _Accepted(NamedTuple):
    """What ranks tell each other of a pair."""

    has_media: bool
    size: PairSize


def plan_batch(
    pairs: Sequence[PreferencePair],
    collator: Collator,
    size: MicroSize,
    rank: int,
    world_size: int,
) -> BatchPlan:
    """Encode this rank's share, agree on what is refused, and cut the share into micro-batches (collective).

    Raises:
        UserError: on every rank: no pair that its own rank can encode can be encoded by all of them.
    """
    share: dict[int, EncodedPair | Dropped] = {}
    for index in range(rank, len(pairs), world_size):
        share[index] = encode_row(pairs[index], collator)
    accepted, dropped = _agreed(share, collator.tree, world_size)
    if not accepted:
        return BatchPlan([], [], [], dropped)
    # Every rank cuts the shares of all ranks: it must know how many micro-batches the longest one has.
    rows: list[PreferencePair] = []
    cuts: list[list[slice]] = []
    for other_rank in range(world_size):
        indices = [index for index in accepted if index % world_size == other_rank]
        rows += [pairs[index] for index in indices]
        cuts.append(size.cut([accepted[index].size for index in indices]))
    filler = None
    if world_size > 1:
        filler = _filler(pairs, share, accepted, collator, world_size)
    # Empty cuts become micro-batches of the filler alone.
    cuts_of_this_rank = list(cuts[rank])
    most_cuts = max(len(cuts_of_rank) for cuts_of_rank in cuts)
    while len(cuts_of_this_rank) < most_cuts:
        cuts_of_this_rank.append(slice(0, 0))
    encoded = [pair for pair in share.values() if isinstance(pair, EncodedPair)]
    return BatchPlan(
        micro_batches=_split(encoded, cuts_of_this_rank, filler),
        pairs=[pairs[index] for index in accepted],
        rows=rows,
        dropped=dropped,
    )


def _agreed(
    share: Mapping[int, EncodedPair | Dropped], tree: bool, world_size: int
) -> tuple[dict[int, _Accepted], list[Dropped]]:
    """Tell all ranks of this one's pairs; return what is accepted and dropped of all, in the batch's order."""
    facts: dict[int, _Accepted | Dropped] = {}
    for index, pair in share.items():
        if isinstance(pair, Dropped):
            facts[index] = pair
        else:
            facts[index] = _Accepted(pair.has_media, _size(pair, index, tree))
    # Pixels stay where they are: only these facts travel.
    for facts_of_rank in gather(dict(facts), world_size):
        facts |= facts_of_rank
    accepted: dict[int, _Accepted] = {}
    dropped: list[Dropped] = []
    for index, fact in sorted(facts.items()):
        if isinstance(fact, Dropped):
            dropped.append(fact)
        else:
            accepted[index] = fact
    return accepted, dropped


def _size(pair: EncodedPair, index: int, tree: bool) -> PairSize:
    """A tree has equal prompts once, rows have none in common. Keys are compared with those of the same rank only."""
    prompt_length = len(pair.prompt.token_ids)
    key = hash(pair.prompt_key) if tree else index
    return PairSize(key, prompt_length, pair.num_tokens - prompt_length)


def _filler(
    pairs: Sequence[PreferencePair],
    share: Mapping[int, EncodedPair | Dropped],
    accepted: Mapping[int, _Accepted],
    collator: Collator,
    world_size: int,
) -> EncodedPair:
    """The first accepted pair with an image, or the first at all, that every rank can encode: the same on all ranks."""
    # With an image if there is one: it then also serves micro-batches that lack media.
    # Sorting is stable: of those alike, the first in the batch comes first.
    candidates = sorted(accepted, key=lambda index: not accepted[index].has_media)
    refused: list[Dropped] = []
    for index in candidates:
        encoded = share.get(index) or encode_row(pairs[index], collator)
        # A file may be missing on one node alone. All ranks look at the same answers, so all go on, or none.
        answers = gather(encoded if isinstance(encoded, Dropped) else None, world_size)
        refusals = [answer for answer in answers if answer is not None]
        if isinstance(encoded, EncodedPair) and not refusals:
            return encoded
        refused += refusals
    raise UserError(
        "learner: expected a pair that every rank can encode, got none, refused "
        f"{drop_report(refused)}; make the same files readable on all nodes"
    )


def _split(
    pairs: Sequence[EncodedPair], cuts: Sequence[slice], filler: EncodedPair | None
) -> list[MicroBatch]:
    """A micro-batch per cut; the filler joins where it would be empty, or lacks media that the filler has."""
    micro_batches: list[MicroBatch] = []
    for cut in cuts:
        chunk = tuple(pairs[cut])
        if filler is not None and _needs_filler(chunk, filler):
            micro_batches.append(MicroBatch((*chunk, filler), num_fillers=1))
        else:
            micro_batches.append(MicroBatch(chunk))
    return micro_batches


def _needs_filler(chunk: Sequence[EncodedPair], filler: EncodedPair) -> bool:
    has_media = any(pair.has_media for pair in chunk)
    return not chunk or (filler.has_media and not has_media)
