"""One flat row of tokens for a micro-batch, in which every prompt and every completion stands a single time.

    [ prompt A | chosen 1 | rejected 1 | rejected 2 ][ prompt B | chosen 3 | rejected 3 ] …        no padding anywhere
    └──────────────── segment 0 ────────────────────┘└──────────── segment 1 ──────────┘

A completion sees its prompt and itself, never a sibling; its positions go on where the prompt ends. Pairs of one
prompt share its segment, pairs with one chosen answer share that answer, prompts with the same images their features.

The hidden state before a token predicts it: the prompt's last token predicts the first token of every completion.
Log-probs are therefore computed as one vector over all completion tokens, and then laid out in rows:

    predictors [completion tokens]   position in the flat row whose hidden state predicts the token
    targets    [completion tokens]   the token
    places     [rows, columns]       for a row of the result, where its tokens are in the two vectors above
    mask       [rows, columns]       True where the row has a token
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learner.batch.encoded import (
    EncodedPair,
    ImageKey,
    PromptKey,
    Row,
    TokenIds,
    rows_of,
)

Device = torch.device | str

MediaOf = tuple[int | None, ...]
"""For every segment its entry of the batch's media, None for text."""

TOKEN_LEVEL = ("mm_token_type_ids", "token_type_ids")
"""Processor outputs with one entry per prompt token."""

MAX_MASK_WASTE = 1.5
"""Siblings go through one masked attention call while it costs at most so many times the separate calls."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A prompt and its completions: a run of tokens in the flat row that attends to nothing outside of it.

    It begins at `start` with `prompt` tokens; behind them come completions of `lengths` tokens. `mask` [completion
    tokens, segment tokens] is added to attention scores when all completions go through one call: 0 where a token may
    be seen, -inf elsewhere. It is None where one call for each completion costs less.
    """

    start: int
    prompt: int
    lengths: tuple[int, ...]
    mask: Tensor | None

    @property
    def stop(self) -> int:
        """Position behind the last token."""
        return self.start + self.prompt + sum(self.lengths)

    def to(
        self,
        device: Device,
        dtype: torch.dtype,
    ) -> Segment:
        """The segment with its mask on a device."""
        if self.mask is None:
            return self
        return replace(self, mask=self.mask.to(device, dtype))


@dataclass(frozen=True, slots=True)
class Media:
    """The images of a prompt: their hashes in order, and what the processor made of them."""

    sha256: ImageKey
    inputs: dict[str, Tensor]

    def to(
        self,
        device: Device,
        dtype: torch.dtype,
    ) -> Media:
        """The images on a device; pixels in the model's dtype."""
        return replace(self, inputs=_moved(self.inputs, device, dtype))


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """Prompts and completions as one flat row of tokens; log-probs come back as one row per completion asked for.

    `input_ids` is [1, tokens]. `predictors`, `targets`, `places` and `mask` are explained at the top of this file.
    `media_of` names for every segment its entry of `media`, None for text; `prompt_types` has for every segment the
    processor's `TOKEN_LEVEL` outputs. `pairs` are what the batch was made from, empty if it was made from rows.
    `memo` holds what the policy's and the reference's forward share.
    """

    pairs: tuple[EncodedPair, ...]
    input_ids: Tensor
    segments: tuple[Segment, ...]
    predictors: Tensor
    targets: Tensor
    places: Tensor
    mask: Tensor
    media: tuple[Media, ...]
    media_of: MediaOf
    prompt_types: tuple[dict[str, Tensor], ...]
    memo: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the language model."""
        return self.input_ids.shape[1]

    def to(
        self,
        device: Device,
        dtype: torch.dtype,
    ) -> TreeBatch:
        """The batch on a device, with an empty memo; pixels and masks in the model's dtype."""
        segments = [segment.to(device, dtype) for segment in self.segments]
        media = [entry.to(device, dtype) for entry in self.media]
        prompt_types = [_moved(types, device, dtype) for types in self.prompt_types]
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            segments=tuple(segments),
            predictors=self.predictors.to(device),
            targets=self.targets.to(device),
            places=self.places.to(device),
            mask=self.mask.to(device),
            media=tuple(media),
            prompt_types=tuple(prompt_types),
            memo={},
        )


def _moved(
    tensors: dict[str, Tensor],
    device: Device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Tensors on a device; floating-point ones in this dtype, token types and grids in their own."""
    moved = {}
    for name, tensor in tensors.items():
        new_dtype = dtype if tensor.is_floating_point() else None
        moved[name] = tensor.to(device, new_dtype)
    return moved


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along the first dimension, after padding all others with zeros to the largest size.

    LLaVA-NeXT needs the padding: images have different numbers of tiles.
    """
    # Per dimension but the first, its sizes in all parts.
    sizes_by_dimension = zip(*[part.shape[1:] for part in parts], strict=True)
    largest = [max(sizes) for sizes in sizes_by_dimension]
    padded = []
    for part in parts:
        edges: list[int] = []
        for size, target in zip(part.shape[1:], largest, strict=True):
            # F.pad takes (before, after) of the last dimension first.
            edges = [0, target - size, *edges]
        if any(edges):
            part = torch.nn.functional.pad(part, edges)
        padded.append(part)
    return torch.cat(padded)


def tree_batch(pairs: Sequence[EncodedPair]) -> TreeBatch:
    """Lay pairs out; result rows are all chosen completions, then all rejected ones, then those behind crops."""
    return tree_rows(rows_of(pairs), pairs)


def tree_rows(
    rows: Sequence[Row],
    pairs: Sequence[EncodedPair] = (),
) -> TreeBatch:
    """Lay out any number of completions of any prompts; result rows are in the order given.

    Prompts are the same if their tokens and images are, completions of one prompt if their tokens are.

    Args:
        rows: a pair whose prompt is used, and the token ids of a completion.
        pairs: what the rows were made from.
    """
    branches = _branches(rows)
    row = _FlatRow()
    for key, branch in branches.items():
        row.add(key, branch)
    mask, places = _result_places(rows, row.first_place)
    prompts = [branch.pair for branch in branches.values()]
    media, media_of = _distinct_media(prompts)
    prompt_types = [_inputs(pair, TOKEN_LEVEL) for pair in prompts]
    return TreeBatch(
        pairs=tuple(pairs),
        input_ids=torch.tensor([row.tokens]),
        segments=tuple(row.segments),
        predictors=torch.tensor(row.predictors),
        targets=torch.tensor(row.targets),
        places=places,
        mask=mask,
        media=media,
        media_of=media_of,
        prompt_types=tuple(prompt_types),
    )


class _Branch(NamedTuple):
    """A distinct prompt, as that of the first pair that has it, and its distinct completions, in order."""

    pair: EncodedPair
    completions: list[TokenIds]


class _FlatRow:
    """The flat row while it is filled, a segment at a time; attributes as in `TreeBatch`.

    `first_place` says for a prompt and a completion where its tokens begin in `predictors` and `targets`.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.segments: list[Segment] = []
        self.predictors: list[int] = []
        self.targets: list[int] = []
        self.first_place: dict[tuple[PromptKey, TokenIds], int] = {}

    def add(
        self,
        key: PromptKey,
        branch: _Branch,
    ) -> None:
        """Append a segment: the prompt, and behind it its completions."""
        prompt_ids = branch.pair.prompt.token_ids
        segment_start = len(self.tokens)
        self.tokens += prompt_ids
        last_of_prompt = len(self.tokens) - 1
        lengths: list[int] = []
        for completion in branch.completions:
            self.first_place[key, completion] = len(self.predictors)
            completion_start = len(self.tokens)
            self.tokens += completion
            last_of_completion = len(self.tokens) - 1
            # The first token is predicted by the prompt's last, every other one by the token before it.
            self.predictors.append(last_of_prompt)
            self.predictors += range(completion_start, last_of_completion)
            self.targets += completion
            lengths.append(len(completion))
        num_prompt = len(prompt_ids)
        mask = _sibling_mask(num_prompt, tuple(lengths))
        segment = Segment(segment_start, num_prompt, tuple(lengths), mask)
        self.segments.append(segment)


def _result_places(
    rows: Sequence[Row],
    first_place: dict[tuple[PromptKey, TokenIds], int],
) -> tuple[Tensor, Tensor]:
    """`mask` and `places` of a `TreeBatch`, [rows, columns] each."""
    lengths: list[int] = []
    firsts: list[int] = []
    for pair, completion in rows:
        lengths.append(len(completion))
        firsts.append(first_place[pair.prompt_key, completion])
    columns = torch.arange(max(lengths))
    mask = columns < torch.tensor(lengths)[:, None]
    places = torch.tensor(firsts)[:, None] + columns
    # Padding points at place 0, which always exists; the mask takes it out again.
    return mask, places * mask


def _branches(
    rows: Sequence[Row],
) -> dict[PromptKey, _Branch]:
    """Distinct prompts with their completions, both in the order in which they first come."""
    branches: dict[PromptKey, _Branch] = {}
    for pair, completion in rows:
        key = pair.prompt_key
        if key not in branches:
            branches[key] = _Branch(pair, [])
        completions = branches[key].completions
        if completion not in completions:
            completions.append(completion)
    return branches


def _inputs(
    pair: EncodedPair,
    names: Sequence[str],
) -> dict[str, Tensor]:
    """Those of a prompt's processor outputs that have one of these names."""
    inputs = pair.prompt.model_inputs
    return {name: inputs[name] for name in inputs if name in names}


def _distinct_media(
    pairs: Sequence[EncodedPair],
) -> tuple[tuple[Media, ...], MediaOf]:
    """Distinct entries of media, and for every pair the index of its entry; None for a prompt without images."""
    indices: dict[ImageKey, int] = {}
    media: list[Media] = []
    media_of: list[int | None] = []
    for pair in pairs:
        key = pair.image_key
        if not key:
            media_of.append(None)
            continue
        if key not in indices:
            indices[key] = len(media)
            # Everything that is not per token belongs to the images: pixels, sizes, grids.
            names = pair.prompt.model_inputs.keys() - set(TOKEN_LEVEL)
            inputs = _inputs(pair, tuple(names))
            media.append(Media(key, inputs))
        media_of.append(indices[key])
    return tuple(media), tuple(media_of)


def _sibling_mask(prompt: int, lengths: tuple[int, ...]) -> Tensor | None:
    """The `mask` of a segment, None where separate calls cost less.

    prompt 2, lengths (2, 1)        prompt     first      second
    first completion                0    0     0   -inf   -inf
                                    0    0     0    0     -inf
    second completion               0    0   -inf  -inf    0
    """
    total = sum(lengths)
    # Attention scores that are computed: queries times keys, in one call or in a call for each completion.
    in_one_call = total * (prompt + total)
    in_separate_calls = 0
    for length in lengths:
        in_separate_calls += length * (prompt + length)
    if in_one_call > MAX_MASK_WASTE * in_separate_calls:
        return None
    # Causal within a completion, blind between completions: [total, total].
    triangles = [torch.ones(length, length).tril() for length in lengths]
    visible = torch.block_diag(*triangles)
    mask = torch.zeros(total, total)
    mask.masked_fill_(visible == 0, float("-inf"))
    # All of the prompt is visible: zeros on the left.
    return torch.nn.functional.pad(mask, (prompt, 0))
