"""Log-probs of completions: the head runs at completion positions only, a chunk of them at a time.

Logits of a whole batch [tokens, vocabulary] never exist: there is a chunk of them at a time, of which one number per
token is kept.

    head                                 way of the logits
    a plain linear layer                 `learner.forward.head`: fused with log softmax and its gradients. A head that
                                         trains keeps one chunk, of at most 128 MiB, for the backward pass
    any other (LoRA, nf4, ZeRO-3)        gradient checkpointing: each chunk again in the backward pass
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from learner.batch.collate import RowBatch
from learner.engines.ranks import most
from learner.forward.head import fused_token_logps
from learner.forward.onednn import is_plain_linear

CHUNK_POSITIONS = 1024
"""Positions per chunk on the way through gradient checkpointing."""


class CompletionLogps(NamedTuple):
    """`token_logps` [rows, response columns] in nats, 0 where `mask` is False; float32, float64 for such models.

    Of the same shape and on demand only: `alternatives`, the log-probs of other tokens at the same positions, and
    `best`, the most likely token ids. `likely_ids` and `likely_logps` [rows, response columns, number asked for] are
    the likeliest tokens, the likeliest one first. A tuple, because ZeRO-3's hooks look for tensors inside of tuples
    only.
    """

    token_logps: Tensor
    mask: Tensor
    alternatives: Tensor | None = None
    best: Tensor | None = None
    likely_ids: Tensor | None = None
    likely_logps: Tensor | None = None

    @property
    def summed(self) -> Tensor:
        """Log-prob of each row's whole completion, [rows]."""
        return self.token_logps.sum(1)

    @property
    def num_tokens(self) -> Tensor:
        """Completion lengths, [rows]."""
        return self.mask.sum(1)


def completion_logps(
    model: Any,
    batch: RowBatch,
    alternatives: Tensor | None = None,
    best: bool = False,
    fused: bool = True,
    likeliest: int = 0,
) -> CompletionLogps:
    """Log-probs of the response tokens of every row under a Hugging Face vision-language model.

    `model.model` maps inputs to hidden states and `model.lm_head` hidden states to logits, as in every family
    served here. The hidden state before a token predicts it.

    Args:
        alternatives: token ids [rows, response columns] to score as well, each after the response's own tokens.
        best: whether to name the most likely tokens, without gradients.
        fused: as in `learner.forward.head`; alternatives are never fused.
        likeliest: how many of the likeliest tokens to name, without gradients.
    """
    output = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
        **batch.media,
    )
    # Row and column of every response token; from here on [response tokens] is the first dimension.
    rows, columns = batch.response_mask.nonzero(as_tuple=True)
    hidden = output.last_hidden_state[rows, columns - 1]
    targets = batch.input_ids[rows, columns]
    mask, places = _response_columns(batch.response_mask, rows, columns)

    def in_rows(values: Tensor) -> Tensor:
        """Values [response tokens, ...] laid out as [rows, response columns, ...]."""
        table = values.new_zeros(mask.shape + values.shape[1:])
        return table.index_put((rows, places), values)

    head = model.lm_head
    other_logps: Tensor | None = None
    if alternatives is None:
        logps = token_logps(head, hidden, targets, fused)
    else:
        # One run of the head for both: targets [response tokens, 2].
        other_targets = alternatives[rows, places]
        both_targets = torch.stack([targets, other_targets], 1)
        both_logps = checkpointed_token_logps(head, hidden, both_targets)
        logps = both_logps[:, 0]
        other_logps = in_rows(both_logps[:, 1])
    best_tokens: Tensor | None = None
    if best:
        best_tokens = in_rows(_best_tokens(head, hidden))
    likely_ids: Tensor | None = None
    likely_logps: Tensor | None = None
    if likeliest:
        ids, values = _likeliest_tokens(head, hidden, likeliest)
        likely_ids, likely_logps = in_rows(ids), in_rows(values)
    return CompletionLogps(
        in_rows(logps), mask, other_logps, best_tokens, likely_ids, likely_logps
    )


def _response_columns(
    response_mask: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> tuple[Tensor, Tensor]:
    """The result's mask [rows, response columns], and the column of each response token in it [response tokens].

    Args:
        response_mask: [rows, tokens].
        rows, columns: where it is True, [response tokens] each.
    """
    # A response's tokens are contiguous: its column in the result counts from its first token.
    first_columns = response_mask.int().argmax(1)
    places = columns - first_columns[rows]
    lengths = response_mask.sum(1)
    longest = int(lengths.max())
    mask = torch.arange(longest, device=lengths.device) < lengths[:, None]
    return mask, places


def token_logps(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    fused: bool,
) -> Tensor:
    """log softmax(head(hidden))[targets], [positions]; fused with its gradients if asked for and possible."""
    if fused and is_plain_linear(head):
        assert isinstance(head, nn.Linear)
        return fused_token_logps(head, hidden, targets)
    return checkpointed_token_logps(head, hidden, targets)


def checkpointed_token_logps(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
) -> Tensor:
    """log softmax(head(hidden))[targets] of any kind of head, in the shape of targets.

    Args:
        hidden: [positions, width].
        targets: [positions], or [positions, any number].
    """
    if targets.ndim == 1:
        one_column = targets[:, None]
        return checkpointed_token_logps(head, hidden, one_column).squeeze(1)
    logps = []
    for states, tokens in _chunks(head, hidden, targets):
        # The chunk's logits are made again in the backward pass, so no two chunks of them exist at a time.
        logp = checkpoint(_chunk_logps, head, states, tokens, use_reentrant=False)
        logps.append(logp)
    return torch.cat(logps)


def _chunk_logps(
    head: nn.Module,
    states: Tensor,
    targets: Tensor,
) -> Tensor:
    """Log-probs of targets [positions, any number], in float32 or wider."""
    logits: Tensor = head(states)
    wide_dtype = torch.promote_types(logits.dtype, torch.float32)
    logits = logits.to(wide_dtype)
    target_logits = logits.gather(1, targets)
    return target_logits - logits.logsumexp(1, keepdim=True)


@torch.no_grad()
def _best_tokens(head: nn.Module, hidden: Tensor) -> Tensor:
    """The most likely token of each position, [positions]."""
    best_tokens = []
    for (states,) in _chunks(head, hidden):
        logits = head(states)
        best_tokens.append(logits.argmax(1))
    return torch.cat(best_tokens)


@torch.no_grad()
def _likeliest_tokens(
    head: nn.Module, hidden: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """The likeliest tokens of each position and their log-probs, [positions, number] each."""
    ids: list[Tensor] = []
    logps: list[Tensor] = []
    for (states,) in _chunks(head, hidden):
        logits = head(states)
        wide_dtype = torch.promote_types(logits.dtype, torch.float32)
        likely = logits.to(wide_dtype).log_softmax(1).topk(number, 1)
        ids.append(likely.indices)
        logps.append(likely.values)
    return torch.cat(ids), torch.cat(logps)


def _chunks(head: nn.Module, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors cut into chunks of CHUNK_POSITIONS rows."""
    splits = [tensor.split(CHUNK_POSITIONS) for tensor in tensors]
    chunks = list(zip(*splits, strict=True))
    # ZeRO-3 marks the parameters that it has split by `ds_id`.
    is_split = any(hasattr(parameter, "ds_id") for parameter in head.parameters())
    if is_split:
        # It gathers the head once per chunk, with all ranks: who has fewer chunks adds empty ones, or all hang.
        device = tensors[0].device
        num_missing = most(len(chunks), device) - len(chunks)
        empty_chunk = tuple(tensor[:0] for tensor in tensors)
        chunks += [empty_chunk] * num_missing
    return chunks
