"""Preference pairs to tensors. What cannot be trained on is refused with its reason; nothing is ever cut.

row 0 .. B-1     prompt of pair i + chosen response,   right-padded
row B .. 2B-1    prompt of pair i + rejected response
row 2B ..        cropped prompt + chosen response, for pairs whose loss wants it
media tensors    the rows' own, one after the other in row order

With `tree` a batch is one flat row that holds every prompt, completion and image once (see learner/tree.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.chat import ChatEncoder, EncodedPrompt, PromptError
from common.images import ImageError
from common.records import Dropped, PreferencePair, Prompt, Response
from common.sources import RLOO
from learner.crops import Crop
from learner.encoded import EncodedPair as EncodedPair
from learner.encoded import rows_of
from learner.tree import TOKEN_LEVEL, TreeBatch, joined, tree_batch

CACHE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class RowBatch:
    """`input_ids`, `attention_mask`, `response_mask` (bool) are [rows, columns]; `media` is what the model takes."""

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    media: dict[str, Tensor]

    def like(self, other: RowBatch) -> RowBatch:
        """The batch on another one's device, pixels in that one's dtype."""
        dtypes = [
            value.dtype for value in other.media.values() if value.is_floating_point()
        ]
        return self.to(other.input_ids.device, dtypes[0] if dtypes else torch.float32)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> RowBatch:
        """The batch on a device; pixels in the model's dtype."""
        media = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in self.media.items()
        }
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            response_mask=self.response_mask.to(device),
            media=media,
        )


class Collator:
    """Encodes pairs through the one chat encoder; keeps recently used prompts' pixels.

    `crop_of` says how a pair's images are cropped for a second look, None for no such look.
    """

    def __init__(
        self,
        encoder: ChatEncoder,
        cache_bytes: int = CACHE_BYTES,
        tree: bool = False,
        crop_of: Callable[[PreferencePair], Crop | None] = lambda pair: None,
    ) -> None:
        self.encoder = encoder
        self.tree = tree
        self.crop_of = crop_of
        self._prompts = PromptCache(encoder, cache_bytes)

    def encode(self, pair: PreferencePair) -> EncodedPair | Dropped:
        """The pair's tokens and pixels, or why it is refused.

        Reasons: `image_*`, `image_count`, `prompt_too_long` (of the prompt), `response_empty`, `response_media`,
        `pair_identical`, `pair_too_long`.
        """
        try:
            prompt = self._prompts.encode(pair.prompt)
        except (PromptError, ImageError) as error:
            return Dropped(pair.id, error.reason, str(error))
        assert pair.prompt_token_ids in (None, prompt.token_ids), (
            f"pair {pair.id}: the engine ran {len(pair.prompt_token_ids or ())} prompt tokens, the learner makes "
            f"{len(prompt.token_ids)} of the same prompt, or others; engine and learner must share one processor"
        )
        chosen, rejected = self._tokens(pair.chosen), self._tokens(pair.rejected)
        refusal = self._refusal(pair.source, len(prompt.token_ids), chosen, rejected)
        if refusal is not None:
            return Dropped(pair.id, *refusal)
        found = EncodedPair(pair, prompt, chosen, rejected)
        crop = self.crop_of(pair)
        return (
            found
            if crop is None
            else replace(found, cropped=self._cropped(found, crop))
        )

    def batch(self, pairs: Sequence[EncodedPair]) -> RowBatch | TreeBatch:
        """What the policy's forward takes for these pairs."""
        return tree_batch(pairs) if self.tree else self.collate(pairs)

    def collate(self, pairs: Sequence[EncodedPair]) -> RowBatch:
        """All chosen rows, then all rejected ones, then those behind crops."""
        return self.rows(
            [(pair.prompt, completion) for pair, completion in rows_of(pairs)]
        )

    def collate_chosen(self, pairs: Sequence[EncodedPair]) -> RowBatch:
        """The first half of `collate`'s rows."""
        return self.rows([(pair.prompt, pair.chosen) for pair in pairs])

    def single(self, prompt: Prompt, token_ids: tuple[int, ...]) -> RowBatch:
        """One row: a prompt and a response (PromptError, ImageError when it cannot be encoded)."""
        return self.rows([(self._prompts.encode(prompt), token_ids)])

    def _cropped(self, pair: EncodedPair, crop: Crop) -> EncodedPair:
        if not pair.has_media:
            return pair
        prompt = self._prompts.encode(pair.pair.prompt, crop)
        assert prompt.token_ids == pair.prompt.token_ids, (
            f"pair {pair.pair.id}: a crop has its image's size"
        )
        return replace(pair, prompt=prompt, view=crop.name)

    def _tokens(self, response: Response) -> tuple[int, ...]:
        # What was sampled is what is trained on: text is only read when there are no tokens.
        return (
            response.token_ids
            if response.token_ids is not None
            else self.encoder.encode_response(response.text)
        )

    def _refusal(
        self,
        source: str,
        num_prompt: int,
        chosen: tuple[int, ...],
        rejected: tuple[int, ...],
    ) -> tuple[str, str] | None:
        # With advantages each side is trained on for itself: equal answers, or one that ends at once, teach as well.
        sides_count = source == RLOO
        for side, tokens in (("chosen", chosen), ("rejected", rejected)):
            if tokens == () or (
                tokens == (self.encoder.eos_token_id,) and not sides_count
            ):
                return "response_empty", f"the {side} response has no token"
            media = set(tokens) & set(self.encoder.media_token_ids)
            if media:
                return (
                    "response_media",
                    f"the {side} response holds media tokens {sorted(media)}",
                )
        if chosen == rejected and not sides_count:
            return "pair_identical", "chosen and rejected are the same tokens"
        longest = num_prompt + max(len(chosen), len(rejected))
        if longest > self.encoder.max_length:
            return (
                "pair_too_long",
                f"{longest} tokens, at most model.max_length = {self.encoder.max_length}",
            )
        return None

    def rows(self, rows: Sequence[tuple[EncodedPrompt, tuple[int, ...]]]) -> RowBatch:
        """Right-padded rows of prompt and completion."""
        width = max(len(prompt.token_ids) + len(response) for prompt, response in rows)
        pad = self.encoder.tokenizer.pad_token_id or 0
        input_ids = torch.full((len(rows), width), pad)
        attention_mask, response_mask = (
            torch.zeros_like(input_ids),
            torch.zeros_like(input_ids, dtype=torch.bool),
        )
        for row, (prompt, response) in enumerate(rows):
            begin, end = len(prompt.token_ids), len(prompt.token_ids) + len(response)
            input_ids[row, :end] = torch.tensor([*prompt.token_ids, *response])
            attention_mask[row, :end] = 1
            response_mask[row, begin:end] = True
        return RowBatch(
            input_ids,
            attention_mask,
            response_mask,
            _join_media([prompt for prompt, _ in rows], width),
        )


class PromptCache:
    """Encoded prompts by messages and image hashes; the least recently used ones leave beyond `max_bytes` of pixels."""

    def __init__(self, encoder: ChatEncoder, max_bytes: int) -> None:
        self._encoder = encoder
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[object, EncodedPrompt] = OrderedDict()

    def encode(self, prompt: Prompt, crop: Crop | None = None) -> EncodedPrompt:
        """The prompt's tensors, made or remembered."""
        key = (prompt.messages, tuple(image.sha256 for image in prompt.images), crop)
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        encoded = (
            self._encoder.encode_prompt(prompt, crop)
            if crop
            else self._encoder.encode_prompt(prompt)
        )
        self._entries[key] = encoded
        self._num_bytes += _num_bytes(encoded)
        while self._num_bytes > self._max_bytes and len(self._entries) > 1:
            _, oldest = self._entries.popitem(last=False)
            self._num_bytes -= _num_bytes(oldest)
        return encoded


def _num_bytes(prompt: EncodedPrompt) -> int:
    return sum(value.nbytes for value in prompt.model_inputs.values())


def _join_media(prompts: Sequence[EncodedPrompt], width: int) -> dict[str, Tensor]:
    """The prompts' tensors in row order; token-level ones grow to `width`, others are padded to a common shape."""
    media: dict[str, Tensor] = {}
    for name in dict.fromkeys(
        name for prompt in prompts for name in prompt.model_inputs
    ):
        if name in TOKEN_LEVEL:
            rows = [prompt.model_inputs[name] for prompt in prompts]
            media[name] = torch.cat(
                [
                    torch.nn.functional.pad(row, (0, width - row.shape[1]))
                    for row in rows
                ]
            )
            continue
        media[name] = joined(
            [
                prompt.model_inputs[name]
                for prompt in prompts
                if name in prompt.model_inputs
            ]
        )
    return media
