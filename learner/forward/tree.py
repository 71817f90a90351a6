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
from typing import Any

import torch
from torch import Tensor

from learner.batch.encoded import EncodedPair, rows_of

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
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> Segment:
        """The segment with its mask on a device."""
        if self.mask is None:
            return self
        return replace(self, mask=self.mask.to(device, dtype))


@dataclass(frozen=True, slots=True)
class Media:
    """The images of a prompt: their hashes in order, and what the processor made of them."""

    sha256: tuple[str, ...]
    inputs: dict[str, Tensor]

    def to(
        self,
        device: torch.device | str,
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
    media_of: tuple[int | None, ...]
    prompt_types: tuple[dict[str, Tensor], ...]
    memo: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the language model."""
        return self.input_ids.shape[1]

    def to(
        self,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> TreeBatch:
        """The batch on a device, with an empty memo; pixels and masks in the model's dtype."""
        types = tuple(_moved(types, device, dtype) for types in self.prompt_types)
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            segments=tuple(segment.to(device, dtype) for segment in self.segments),
            predictors=self.predictors.to(device),
            targets=self.targets.to(device),
            places=self.places.to(device),
            mask=self.mask.to(device),
            media=tuple(entry.to(device, dtype) for entry in self.media),
            prompt_types=types,
            memo={},
        )


def _moved(
    tensors: dict[str, Tensor],
    device: torch.device | str,
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
    all_sizes = [part.shape[1:] for part in parts]
    largest = [max(sizes) for sizes in zip(*all_sizes, strict=True)]
    padded = []
    for part in parts:
        edges: list[int] = []
        for size, target in zip(part.shape[1:], largest, strict=True):
            # F.pad takes (before, after) of the last dimension first.
            edges = [0, target - size, *edges]
        padded.append(torch.nn.functional.pad(part, edges) if any(edges) else part)
    return torch.cat(padded)


def tree_batch(pairs: Sequence[EncodedPair]) -> TreeBatch:
    """Lay pairs out; result rows are all chosen completions, then all rejected ones, then those behind crops."""
    return tree_rows(rows_of(pairs), pairs)


def tree_rows(
    rows: Sequence[tuple[EncodedPair, tuple[int, ...]]],
    pairs: Sequence[EncodedPair] = (),
) -> TreeBatch:
    """Lay out any number of completions of any prompts; result rows are in the order given.

    Prompts are the same if their tokens and images are, completions of one prompt if their tokens are.

    Args:
        rows: a pair whose prompt is used, and the token ids of a completion.
        pairs: what the rows were made from.
    """
    branches = _branches(rows)
    tokens: list[int] = []
    segments: list[Segment] = []
    predictors: list[int] = []
    targets: list[int] = []
    # Where a completion's tokens begin in predictors and targets.
    first_place: dict[tuple[Any, ...], int] = {}
    for key, (pair, completions) in branches.items():
        prompt_ids = pair.prompt.token_ids
        start = len(tokens)
        tokens += prompt_ids
        prompt_end = len(tokens) - 1
        for completion in completions:
            first_place[key, completion] = len(predictors)
            completion_start = len(tokens)
            tokens += completion
            predictors.append(prompt_end)
            predictors += range(completion_start, len(tokens) - 1)
            targets += completion
        lengths = tuple(len(completion) for completion in completions)
        mask = _sibling_mask(len(prompt_ids), lengths)
        segments.append(Segment(start, len(prompt_ids), lengths, mask))

    row_lengths = torch.tensor([len(completion) for _, completion in rows])
    columns = torch.arange(int(row_lengths.max()))
    mask = columns < row_lengths[:, None]
    firsts = [first_place[pair.prompt_key, completion] for pair, completion in rows]
    # Padding points at place 0, which always exists; the mask takes it out again.
    places = (torch.tensor(firsts)[:, None] + columns) * mask
    first_pairs = [pair for pair, _ in branches.values()]
    media, media_of = _distinct_media(first_pairs)
    return TreeBatch(
        pairs=tuple(pairs),
        input_ids=torch.tensor([tokens]),
        segments=tuple(segments),
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
        places=places,
        mask=mask,
        media=media,
        media_of=media_of,
        prompt_types=tuple(_inputs(pair, TOKEN_LEVEL) for pair in first_pairs),
    )


def _branches(
    rows: Sequence[tuple[EncodedPair, tuple[int, ...]]],
) -> dict[tuple[Any, ...], tuple[EncodedPair, list[tuple[int, ...]]]]:
    """Distinct prompts by key, each with the first pair that has it and its distinct completions, in order."""
    branches: dict[tuple[Any, ...], tuple[EncodedPair, list[tuple[int, ...]]]] = {}
    for pair, completion in rows:
        _, completions = branches.setdefault(pair.prompt_key, (pair, []))
        if completion not in completions:
            completions.append(completion)
    return branches


def _inputs(pair: EncodedPair, names: Sequence[str]) -> dict[str, Tensor]:
    """Those of a prompt's processor outputs."""
    inputs = pair.prompt.model_inputs
    return {name: inputs[name] for name in inputs if name in names}


def _distinct_media(
    pairs: Sequence[EncodedPair],
) -> tuple[tuple[Media, ...], tuple[int | None, ...]]:
    """Distinct entries of media, and for every pair the index of its own; None for a prompt without images."""
    indices: dict[tuple[str, ...], int] = {}
    media: list[Media] = []
    media_of: list[int | None] = []
    for pair in pairs:
        key = pair.image_key
        if not key:
            media_of.append(None)
            continue
        if key not in indices:
            indices[key] = len(media)
            names = pair.prompt.model_inputs.keys() - set(TOKEN_LEVEL)
            media.append(Media(key, _inputs(pair, tuple(names))))
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
    # Scores that are computed, by one call and by a call for each completion.
    in_one_call = total * (prompt + total)
    in_separate_calls = sum(length * (prompt + length) for length in lengths)
    if in_one_call > MAX_MASK_WASTE * in_separate_calls:
        return None
    causal = [torch.ones(length, length).tril() for length in lengths]
    visible = torch.block_diag(*causal)
    hidden = torch.zeros(total, total).masked_fill_(visible == 0, float("-inf"))
    return torch.nn.functional.pad(hidden, (prompt, 0))
