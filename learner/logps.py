"""Log-probs of completions: the head runs at completion positions only, a chunk of them at a time.

Of the tokens x vocabulary tensor a chunk exists at a time, and one number per token is kept. `learner.head` does that
fused with its gradients, and keeps one chunk, of at most 128 MiB, until the backward pass of a head that trains; heads
that it cannot take go through gradient checkpointing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from learner.collate import RowBatch
from learner.head import fused_token_logps
from learner.products import is_plain
from learner.ranks import most

CHUNK_POSITIONS = 1024


class CompletionLogps(NamedTuple):
    """`token_logps` [rows, response columns] in nats, 0 where `mask` is False; float32, or float64 models' own.

    Of the same shape and on demand only: `alternatives`, the log-probs of other tokens at the same positions, and
    `best`, the most likely token ids. A tuple, because ZeRO-3's hooks look for tensors inside of tuples only.
    """

    token_logps: Tensor
    mask: Tensor
    alternatives: Tensor | None = None
    best: Tensor | None = None

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
) -> CompletionLogps:
    """Log-probs of the response tokens of every row under a Hugging Face vision-language model.

    `model.model` maps inputs to hidden states and `model.lm_head` hidden states to logits, as in every family
    served here. The hidden state before a token predicts it.

    Args:
        alternatives: token ids [rows, response columns] to score as well, each after the response's own tokens.
        best: whether to name the most likely tokens, without gradients.
        fused: as in `learner.head`; alternatives are never fused.
    """
    hidden = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
        **batch.media,
    ).last_hidden_state
    rows, columns = batch.response_mask.nonzero(as_tuple=True)
    states = hidden[rows, columns - 1]
    lengths = batch.response_mask.sum(1)
    places = columns - batch.response_mask.int().argmax(1)[rows]
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]

    def laid_out(values: Tensor) -> Tensor:
        return values.new_zeros(mask.shape).index_put((rows, places), values)

    targets = batch.input_ids[rows, columns][:, None]
    if alternatives is not None:
        targets = torch.cat([targets, alternatives[rows, places][:, None]], 1)
        values = checkpointed_token_logps(model.lm_head, states, targets)
    else:
        values = token_logps(model.lm_head, states, targets[:, 0], fused)[:, None]
    own, *others = map(laid_out, values.unbind(1))
    return CompletionLogps(
        own,
        mask,
        others[0] if others else None,
        laid_out(_best_tokens(model.lm_head, states)) if best else None,
    )


def token_logps(
    head: nn.Module, hidden: Tensor, targets: Tensor, fused: bool
) -> Tensor:
    """log softmax(head(hidden))[targets], [positions]; fused with its gradients if asked for and possible."""
    if fused and is_plain(head):
        assert isinstance(head, nn.Linear)
        return fused_token_logps(head, hidden, targets)
    return checkpointed_token_logps(head, hidden, targets)


def checkpointed_token_logps(
    head: nn.Module, hidden: Tensor, targets: Tensor
) -> Tensor:
    """log softmax(head(hidden))[targets] of any kind of head, in the shape of targets.

    Args:
        hidden: [positions, width].
        targets: [positions], or [positions, any number].
    """
    if targets.ndim == 1:
        return checkpointed_token_logps(head, hidden, targets[:, None]).squeeze(1)

    def chunk_logps(states: Tensor, wanted: Tensor) -> Tensor:
        logits: Tensor = head(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.gather(1, wanted) - logits.logsumexp(1, keepdim=True)

    chunks = _chunks(head, hidden, targets)
    return torch.cat(
        [checkpoint(chunk_logps, *chunk, use_reentrant=False) for chunk in chunks]
    )


@torch.no_grad()
def _best_tokens(head: nn.Module, hidden: Tensor) -> Tensor:
    """The most likely token of each position, [positions]."""
    return torch.cat([head(states).argmax(1) for (states,) in _chunks(head, hidden)])


def _chunks(head: nn.Module, *rows: Tensor) -> list[tuple[Tensor, ...]]:
    """CHUNK_POSITIONS rows of each at a time; on all ranks equally many for a head that ZeRO-3 gathers for each."""
    chunks = list(zip(*(each.split(CHUNK_POSITIONS) for each in rows), strict=True))
    if any(hasattr(parameter, "ds_id") for parameter in head.parameters()):
        nothing = tuple(each[:0] for each in rows)
        chunks += [nothing] * (most(len(chunks), rows[0].device) - len(chunks))
    return chunks
