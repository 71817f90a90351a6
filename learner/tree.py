"""Each thing once: all sequences of a micro-batch in one flat row, every prompt and every completion a single time.

    [prompt A | chosen 1 | rejected 1 | rejected 2][prompt B | chosen 3 | rejected 3] …        no padding anywhere

A completion sees its own prompt and itself, never a sibling; its positions go on where the prompt ends. Pairs of one
prompt share its segment, pairs with one chosen answer share that answer, prompts with the same images their features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from learner.encoded import EncodedPair, rows_of

TOKEN_LEVEL = ("mm_token_type_ids", "token_type_ids")
"""Processor outputs with one entry per prompt token."""

MAX_WASTE = 1.5


@dataclass(frozen=True, slots=True)
class Segment:
    """A prompt and its completions: `start`, then `prompt` tokens, then completions of `lengths` tokens.

    `mask` [completion tokens, segment tokens] is added to attention when all completions go through one call: 0 where a
    token may be seen, -inf elsewhere. None when a call for each completion costs less.
    """

    start: int
    prompt: int
    lengths: tuple[int, ...]
    mask: Tensor | None

    @property
    def stop(self) -> int:
        return self.start + self.prompt + sum(self.lengths)


@dataclass(frozen=True, slots=True)
class Media:
    """The images of a prompt: their hashes in order, and what the processor made of them."""

    sha256: tuple[str, ...]
    inputs: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """Prompts and completions as one row of tokens; log-probs come back as a row per completion asked for.

    `pairs` are what it was made from, if from pairs. `input_ids` is [1, tokens]. `predictors` and `targets`
    [completion tokens] are the places whose hidden state predicts, and the token it is asked for. `places` and `mask`
    [rows, longest completion] say where in those a row's tokens are. `media_of` names for every segment its entry of
    `media`, None for text. `memo` holds what the policy's and the reference's forward share.
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

    def to(self, device: torch.device | str, dtype: torch.dtype) -> TreeBatch:
        """The batch on a device; pixels in the model's dtype."""

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: v.to(device, dtype if v.is_floating_point() else None)
                for name, v in tensors.items()
            }

        return replace(
            self,
            input_ids=self.input_ids.to(device),
            segments=tuple(
                replace(s, mask=None if s.mask is None else s.mask.to(device, dtype))
                for s in self.segments
            ),
            predictors=self.predictors.to(device),
            targets=self.targets.to(device),
            places=self.places.to(device),
            mask=self.mask.to(device),
            media=tuple(
                replace(each, inputs=moved(each.inputs)) for each in self.media
            ),
            prompt_types=tuple(moved(types) for types in self.prompt_types),
            memo={},
        )


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One behind the other; in every other dimension zeros fill what is smaller (LLaVA-NeXT's numbers of tiles)."""
    shape = [
        max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)
    ]
    padded = []
    for part in parts:
        missing = [
            size - have for size, have in zip(shape, part.shape[1:], strict=True)
        ]
        edges = [edge for size in reversed(missing) for edge in (0, size)]
        padded.append(torch.nn.functional.pad(part, edges) if any(missing) else part)
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
    """
    prompts: dict[tuple[Any, ...], tuple[EncodedPair, list[tuple[int, ...]]]] = {}
    for pair, completion in rows:
        completions = prompts.setdefault(pair.prompt_key, (pair, []))[1]
        if completion not in completions:
            completions.append(completion)
    tokens: list[int] = []
    segments: list[Segment] = []
    predictors: list[int] = []
    first_place: dict[tuple[Any, ...], int] = {}
    for key, (pair, completions) in prompts.items():
        start, prompt = len(tokens), pair.prompt.token_ids
        tokens += prompt
        for completion in completions:
            first_place[key, completion] = len(predictors)
            predictors += [
                start + len(prompt) - 1,
                *range(len(tokens), len(tokens) + len(completion) - 1),
            ]
            tokens += completion
        lengths = tuple(map(len, completions))
        segments.append(
            Segment(start, len(prompt), lengths, _mask(len(prompt), lengths))
        )
    targets = [
        token
        for _, completions in prompts.values()
        for completion in completions
        for token in completion
    ]
    row_lengths = torch.tensor([len(completion) for _, completion in rows])
    columns = torch.arange(int(row_lengths.max()))
    mask = columns < row_lengths[:, None]
    firsts = torch.tensor(
        [first_place[pair.prompt_key, completion] for pair, completion in rows]
    )
    first_pairs = [pair for pair, _ in prompts.values()]
    media, media_of = _distinct_media(first_pairs)
    return TreeBatch(
        pairs=tuple(pairs),
        input_ids=torch.tensor([tokens]),
        segments=tuple(segments),
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
        places=(firsts[:, None] + columns) * mask,
        mask=mask,
        media=media,
        media_of=media_of,
        prompt_types=tuple(
            {
                name: value
                for name, value in pair.prompt.model_inputs.items()
                if name in TOKEN_LEVEL
            }
            for pair in first_pairs
        ),
    )


def _distinct_media(
    pairs: Sequence[EncodedPair],
) -> tuple[tuple[Media, ...], tuple[int | None, ...]]:
    numbers: dict[tuple[str, ...], int] = {}
    media: list[Media] = []
    media_of: list[int | None] = []
    for pair in pairs:
        key = pair.image_key
        if not key:
            media_of.append(None)
            continue
        if key not in numbers:
            numbers[key] = len(media)
            inputs = {
                name: v
                for name, v in pair.prompt.model_inputs.items()
                if name not in TOKEN_LEVEL
            }
            media.append(Media(key, inputs))
        media_of.append(numbers[key])
    return tuple(media), tuple(media_of)


def _mask(prompt: int, lengths: tuple[int, ...]) -> Tensor | None:
    total = sum(lengths)
    if total * (prompt + total) > MAX_WASTE * sum(
        length * (prompt + length) for length in lengths
    ):
        return None
    own = torch.block_diag(*(torch.ones(length, length).tril() for length in lengths))
    hidden = torch.zeros(total, total).masked_fill_(own == 0, float("-inf"))
    return torch.nn.functional.pad(hidden, (prompt, 0))
