"""Preference pairs to tensors. What cannot be trained on is refused with its reason; nothing is ever cut.

row 0 .. B-1     prompt of pair i + chosen response,   right-padded
row B .. 2B-1    prompt of pair i + rejected response
row 2B ..        cropped prompt + chosen response, for pairs whose loss needs it
media tensors    those of all rows, one after the other in row order

With `tree` a batch is one flat row that holds every prompt, completion and image once (see learner/forward/tree.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from cachetools import LRUCache
from torch import Tensor

from common.chat import ChatEncoder, EncodedPrompt
from common.errors import Refused
from common.records import Dropped, PreferencePair, Prompt, Response
from common.sources import WITH_ADVANTAGES
from learner.batch.ahead import PromptAndCrop, PromptsAhead, content_key, num_bytes
from learner.batch.crops import Crop
from learner.batch.encoded import EncodedPair as EncodedPair
from learner.batch.encoded import rows_of
from learner.forward.tree import TOKEN_LEVEL, TreeBatch, joined, tree_batch

CACHE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class RowBatch:
    """`input_ids`, `attention_mask`, `response_mask` (bool) are [rows, columns]; `media` is what the model takes."""

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    media: dict[str, Tensor]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> RowBatch:
        """The batch on a device; pixels in the model's dtype."""
        media: dict[str, Tensor] = {}
        for name, value in self.media.items():
            # Grids and other integers keep their type.
            new_dtype = dtype if value.is_floating_point() else None
            media[name] = value.to(device, new_dtype)
        return RowBatch(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            response_mask=self.response_mask.to(device),
            media=media,
        )


class Collator:
    """Encodes pairs through the one chat encoder; keeps recently used prompts' pixels.

    Args:
        cache_bytes: limit of the kept pixels.
        tree: whether a batch is a tree, not padded rows.
        crop_of: how a pair's images are cropped for another row of the chosen side, None for no such row.
        ahead: encodes prompts in other processes before they are asked for.
    """

    def __init__(
        self,
        encoder: ChatEncoder,
        cache_bytes: int = CACHE_BYTES,
        tree: bool = False,
        crop_of: Callable[[PreferencePair], Crop | None] = lambda pair: None,
        ahead: PromptsAhead | None = None,
    ) -> None:
        self.encoder = encoder
        self.tree = tree
        self.crop_of = crop_of
        self.ahead = ahead
        self._prompts = PromptCache(encoder, cache_bytes, ahead)

    def prepare(self, pairs: Sequence[PreferencePair], step: int) -> None:
        """Let other processes begin with the pictures that this step will ask for, if there are such processes."""
        wanted: list[PromptAndCrop] = []
        for pair in pairs:
            # Without a picture there is next to nothing to do.
            if not pair.prompt.images:
                continue
            wanted.append((pair.prompt, None))
            crop = self.crop_of(pair)
            if crop is not None:
                wanted.append((pair.prompt, crop))
        self._prompts.prepare(wanted, step)

    def encode(self, pair: PreferencePair) -> EncodedPair | Dropped:
        """The pair's tokens and pixels, or why it is refused.

        Reasons: those of `ChatEncoder.encode_prompt` and `encode_response`, `response_empty`, `response_media`,
        `token_unknown`, `pair_identical`, `pair_too_long`.
        """
        try:
            prompt = self._prompts.encode(pair.prompt)
            chosen = self._tokens(pair.chosen)
            rejected = self._tokens(pair.rejected)
        except Refused as error:
            return Dropped(pair.id, error.reason, str(error))
        assert pair.prompt_token_ids in (None, prompt.token_ids), (
            f"pair {pair.id}: the engine ran {len(pair.prompt_token_ids or ())} prompt tokens, the learner makes "
            f"{len(prompt.token_ids)} of the same prompt, or others; engine and learner must share one processor"
        )
        refusal = self._refusal(pair.source, len(prompt.token_ids), chosen, rejected)
        if refusal is not None:
            reason, detail = refusal
            return Dropped(pair.id, reason, detail)
        encoded = EncodedPair(pair, prompt, chosen, rejected)
        crop = self.crop_of(pair)
        if crop is not None:
            encoded = replace(encoded, cropped=self._cropped(encoded, crop))
        return encoded

    def batch(self, pairs: Sequence[EncodedPair]) -> RowBatch | TreeBatch:
        """What the policy's forward takes for these pairs."""
        return tree_batch(pairs) if self.tree else self.collate(pairs)

    def collate(self, pairs: Sequence[EncodedPair]) -> RowBatch:
        """All chosen rows, then all rejected ones, then those behind crops."""
        return self.rows([(pair.prompt, response) for pair, response in rows_of(pairs)])

    def collate_chosen(self, pairs: Sequence[EncodedPair]) -> RowBatch:
        """The chosen rows of `collate` alone."""
        return self.rows([(pair.prompt, pair.chosen) for pair in pairs])

    def prompt(self, prompt: Prompt) -> EncodedPrompt:
        """A prompt alone (Refused when it cannot be encoded)."""
        return self._prompts.encode(prompt)

    def single(self, prompt: Prompt, token_ids: tuple[int, ...]) -> RowBatch:
        """One row: a prompt and a response (Refused when it cannot be encoded)."""
        return self.rows([(self.prompt(prompt), token_ids)])

    def rows(self, rows: Sequence[tuple[EncodedPrompt, tuple[int, ...]]]) -> RowBatch:
        """Right-padded rows of prompt and response."""
        lengths = [len(prompt.token_ids) + len(response) for prompt, response in rows]
        width = max(lengths)
        pad = self.encoder.tokenizer.pad_token_id or 0
        input_ids = torch.full((len(rows), width), pad)
        # Padding on the right: positions of real tokens do not depend on the batch.
        attention_mask = torch.zeros_like(input_ids)
        response_mask = torch.zeros_like(input_ids, dtype=torch.bool)
        for row, (prompt, response) in enumerate(rows):
            begin, end = len(prompt.token_ids), lengths[row]
            tokens = prompt.token_ids + response
            input_ids[row, :end] = torch.tensor(tokens)
            attention_mask[row, :end] = 1
            response_mask[row, begin:end] = True
        media = _join_media([prompt for prompt, _ in rows], width)
        return RowBatch(input_ids, attention_mask, response_mask, media)

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
        if response.token_ids is not None:
            self.encoder.check_known("a sampled answer", response.token_ids)
            return response.token_ids
        return self.encoder.encode_response(response.text)

    def _refusal(
        self,
        source: str,
        prompt_length: int,
        chosen: tuple[int, ...],
        rejected: tuple[int, ...],
    ) -> tuple[str, str] | None:
        """Reason and detail if the responses cannot be trained on."""
        # With advantages each side is trained on for itself: equal answers, or one that ends at once, teach as well.
        sides_are_compared = source not in WITH_ADVANTAGES
        stops = self.encoder.stop_token_ids
        for side, tokens in (("chosen", chosen), ("rejected", rejected)):
            ended_at_once = len(tokens) == 1 and tokens[0] in stops
            if not tokens or (sides_are_compared and ended_at_once):
                return "response_empty", f"the {side} response has no token"
            media = set(tokens) & set(self.encoder.media_token_ids)
            if media:
                detail = f"the {side} response holds media tokens {sorted(media)}"
                return "response_media", detail
        # Two ends of a turn make no difference, nor does an answer that was cut off before its end.
        if sides_are_compared and _without_end(chosen, stops) == _without_end(
            rejected, stops
        ):
            return "pair_identical", "chosen and rejected are the same tokens"
        longest = prompt_length + max(len(chosen), len(rejected))
        limit = self.encoder.max_length
        if longest > limit:
            detail = f"{longest} tokens, at most model.max_length = {limit}"
            return "pair_too_long", detail
        return None


def _without_end(tokens: tuple[int, ...], stops: Sequence[int]) -> tuple[int, ...]:
    return tokens[:-1] if tokens and tokens[-1] in stops else tokens


class PromptCache:
    """Encoded prompts by messages and image hashes; the least recently used ones leave beyond `max_bytes` of pixels."""

    def __init__(
        self,
        encoder: ChatEncoder,
        max_bytes: int,
        ahead: PromptsAhead | None = None,
    ) -> None:
        self._encoder = encoder
        self._ahead = ahead
        self._entries: LRUCache[object, EncodedPrompt] = LRUCache(
            max_bytes, getsizeof=num_bytes
        )

    def prepare(self, wanted: Sequence[PromptAndCrop], step: int) -> None:
        """Begin with those that are not here."""
        if self._ahead is None:
            return
        missing: list[PromptAndCrop] = []
        for prompt, crop in wanted:
            if content_key(prompt, crop) not in self._entries:
                missing.append((prompt, crop))
        self._ahead.prepare(missing, step)

    def encode(self, prompt: Prompt, crop: Crop | None = None) -> EncodedPrompt:
        """The prompt's tensors, encoded now or kept from an earlier call."""
        key = content_key(prompt, crop)
        if key in self._entries:
            return self._entries[key]
        encoded = None
        if self._ahead is not None:
            encoded = self._ahead.take(prompt, crop)
        if encoded is None:
            encoded = self._encoder.encode_prompt(prompt, crop)
        # LRUCache raises ValueError for an entry larger than the whole cache.
        if num_bytes(encoded) <= self._entries.maxsize:
            self._entries[key] = encoded
        return encoded


def _join_media(prompts: Sequence[EncodedPrompt], width: int) -> dict[str, Tensor]:
    """The prompts' tensors in row order; token-level ones grow to `width`, others are padded to a common shape."""
    by_name: dict[str, list[Tensor]] = {}
    for prompt in prompts:
        for name, value in prompt.model_inputs.items():
            if name in TOKEN_LEVEL:
                value = F.pad(value, (0, width - value.shape[1]))
            by_name.setdefault(name, []).append(value)
    media: dict[str, Tensor] = {}
    for name, values in by_name.items():
        media[name] = torch.cat(values) if name in TOKEN_LEVEL else joined(values)
    return media
