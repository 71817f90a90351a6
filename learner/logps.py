"""Log-probs of completions: the head runs at completion positions only, a chunk of them at a time.

The tokens x vocabulary tensor never exists: of each chunk's logits one number per token is kept, and gradient
checkpointing makes them again in the backward pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from learner.collate import RowBatch

CHUNK_POSITIONS = 1024


class CompletionLogps(NamedTuple):
    """`token_logps` [rows, response columns] in nats, 0 where `mask` is False; float32, or float64 models' own.

    A tuple, because ZeRO-3's hooks look for tensors inside of tuples only.
    """

    token_logps: Tensor
    mask: Tensor

    @property
    def summed(self) -> Tensor:
        """Log-prob of each row's whole completion, [rows]."""
        return self.token_logps.sum(1)

    @property
    def num_tokens(self) -> Tensor:
        """Completion lengths, [rows]."""
        return self.mask.sum(1)


def completion_logps(model: Any, batch: RowBatch) -> CompletionLogps:
    """Log-probs of the response tokens of every row under a Hugging Face vision-language model.

    `model.model` maps inputs to hidden states and `model.lm_head` hidden states to logits, as in every family
    served here. The hidden state before a token predicts it.
    """
    hidden = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
        **batch.media,
    ).last_hidden_state
    rows, columns = batch.response_mask.nonzero(as_tuple=True)
    values = _token_logps(model.lm_head, hidden[rows, columns - 1], batch.input_ids[rows, columns])
    lengths = batch.response_mask.sum(1)
    places = columns - batch.response_mask.int().argmax(1)[rows]
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    token_logps = values.new_zeros(mask.shape).index_put((rows, places), values)
    return CompletionLogps(token_logps, mask)


def _token_logps(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """log softmax(head(hidden))[targets] for hidden [positions, width], targets [positions]."""

    def chunk_logps(states: Tensor, wanted: Tensor) -> Tensor:
        logits: Tensor = head(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.gather(1, wanted[:, None]).squeeze(1) - logits.logsumexp(1)

    chunks = zip(hidden.split(CHUNK_POSITIONS), targets.split(CHUNK_POSITIONS), strict=True)
    return torch.cat([checkpoint(chunk_logps, states, wanted, use_reentrant=False) for states, wanted in chunks])
