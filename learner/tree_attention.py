"""Attention over a `TreeBatch`, as an attention implementation of transformers.

Within a segment the prompt attends causally, each completion to the prompt and to itself. Nothing else is computed:
no mask over the whole row exists, and pairs in one row cost no more than in rows of their own. On a CPU one autograd
function writes outputs and gradients of all segments in place: slices would each bring a zeroed gradient of the row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from learner.tree import Segment

NAME = "sightline_tree"

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Call(NamedTuple):
    """One attention call: tokens that ask, runs of tokens that are seen, and how (causal, or an additive mask)."""

    asks: slice
    seen: tuple[slice, ...]
    causal: bool
    mask: Tensor | None


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree: Sequence[Segment] | None = None,
    predictors_only: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """SDPA within the segments of `tree`; without one, transformers' own SDPA. query is [1, heads, tokens, width].

    With `predictors_only` query has only tokens that predict: each prompt's last, each completion's but its last.
    """
    if tree is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            **kwargs,
        )
    calls = (
        list(_predictors_calls(tree, query))
        if predictors_only
        else [c for s in tree for c in _calls(s, query)]
    )
    if _is_one_function(query, dropout):
        return _TreeAttention.apply(query, key, value, calls, scaling), None  # type: ignore[no-untyped-call]
    # Splits, because their backward is one concatenation.
    asking = query.split([call.asks.stop - call.asks.start for call in calls], 2)
    groups = query.shape[1] // key.shape[1]
    key, value = _for_all_heads(key, groups), _for_all_heads(value, groups)
    parts = [
        F.scaled_dot_product_attention(
            ask,
            _seen(key, call),
            _seen(value, call),
            call.mask,
            dropout,
            call.causal,
            scale=scaling,
        )
        for ask, call in zip(asking, calls, strict=True)
    ]
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def install(language_model: Any) -> None:
    """Make a language model attend by trees when it is given one; it stays SDPA otherwise."""
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    language_model.config._attn_implementation = NAME


def _is_one_function(query: Tensor, dropout: float) -> bool:
    return query.device.type == "cpu" and not dropout


def _calls(segment: Segment, query: Tensor) -> Iterator[Call]:
    """In the order of the tokens that ask."""
    end = segment.start + segment.prompt
    prompt = slice(segment.start, end)
    yield Call(prompt, (prompt,), True, None)
    if segment.mask is not None:
        whole = slice(segment.start, segment.stop)
        yield Call(
            slice(end, segment.stop), (whole,), False, segment.mask.to(query.dtype)
        )
        return
    for length in segment.lengths:
        own = slice(end, end + length)
        hidden = query.new_full((length, length), float("-inf")).triu(1)
        yield Call(own, (prompt, own), False, F.pad(hidden, (segment.prompt, 0)))
        end += length


def _predictors_calls(tree: Sequence[Segment], query: Tensor) -> Iterator[Call]:
    """The same for a query of predictors alone."""
    at = 0
    for segment in tree:
        prompt, *completions = _calls(segment, query)
        yield Call(slice(at, at + 1), prompt.seen, False, None)
        at += 1
        lengths = (
            [segment.lengths]
            if segment.mask is not None
            else [(length,) for length in segment.lengths]
        )
        for call, run in zip(completions, lengths, strict=True):
            ends = itertools.accumulate(run)
            rows = [
                row
                for end, length in zip(ends, run, strict=True)
                for row in range(end - length, end - 1)
            ]
            if rows:
                assert call.mask is not None
                yield Call(slice(at, at + len(rows)), call.seen, False, call.mask[rows])
                at += len(rows)


def _seen(tensor: Tensor, call: Call) -> Tensor:
    runs = [tensor[:, :, run] for run in call.seen]
    return runs[0] if len(runs) == 1 else torch.cat(runs, 2)


def _for_all_heads(tensor: Tensor, groups: int) -> Tensor:
    """Keys or values of grouped queries, repeated for each query of a group; a view where each has one."""
    return tensor.unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(1, 2)


class _TreeAttention(torch.autograd.Function):
    """Output [1, tokens, heads, width]; keeps what the kernel keeps, and no copy of keys or values."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        calls: list[Call],
        scale: float | None,
    ) -> Tensor:
        batch, heads, tokens, width = query.shape
        groups = heads // key.shape[1]
        output = query.new_empty(batch, tokens, heads, width)
        norms = []
        for call in calls:
            seen = [
                _for_all_heads(_seen(states, call), groups) for states in (key, value)
            ]
            part, norm = _forward(
                query[:, :, call.asks],
                *seen,
                0.0,
                call.causal,
                attn_mask=call.mask,
                scale=scale,
            )
            output[:, call.asks] = part.transpose(1, 2)
            norms.append(norm)
        ctx.save_for_backward(query, key, value, output, *norms)
        ctx.calls, ctx.scale, ctx.groups = calls, scale, groups
        return output

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *norms = ctx.saved_tensors
        grad_query, grad_key, grad_value = (
            torch.empty_like(query),
            torch.zeros_like(key),
            torch.zeros_like(value),
        )
        for call, norm in zip(ctx.calls, norms, strict=True):
            of_query, *of_seen = _backward(
                grad[:, call.asks].transpose(1, 2),
                query[:, :, call.asks],
                *(
                    _for_all_heads(_seen(states, call), ctx.groups)
                    for states in (key, value)
                ),
                output[:, call.asks].transpose(1, 2),
                norm,
                0.0,
                call.causal,
                attn_mask=call.mask,
                scale=ctx.scale,
            )
            grad_query[:, :, call.asks] = of_query
            if ctx.groups > 1:
                of_seen = [
                    each.unflatten(1, (-1, ctx.groups)).sum(2) for each in of_seen
                ]
            of_key, of_value = of_seen
            begin = 0
            for run in call.seen:
                end = begin + run.stop - run.start
                grad_key[:, :, run] += of_key[:, :, begin:end]
                grad_value[:, :, run] += of_value[:, :, begin:end]
                begin = end
        return grad_query, grad_key, grad_value, None, None
