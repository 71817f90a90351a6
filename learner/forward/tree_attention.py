"""Attention over a `TreeBatch`, as an attention implementation of transformers.

Within a segment the prompt attends causally, and each completion attends to the prompt and causally to itself:

    queries         keys           call
    prompt          prompt         causal
    completions     segment        one call with the segment's mask (see `learner.forward.tree.Segment`), or
    completion i    prompt, i      a call for each completion, with a mask that is causal over i

Nothing else is computed: no mask over the whole row exists, and pairs in one row cost no more than in rows of their
own. Keys and values of grouped queries are never repeated for the queries of a group. On a CPU one autograd function
writes outputs and gradients of all segments in place; slices of the row would each bring a zeroed gradient as long as
the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from learner.forward.onednn import Gradients
from learner.forward.tree import Segment

NAME = "sightline_tree"

# The kernels behind F.scaled_dot_product_attention on a CPU, called directly for the sake of their backward.
_flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# The kernels that take strides as they are. cuDNN's builds a graph of its operands, and has never met a stride of 0.
_STRIDED_KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class Call(NamedTuple):
    """One attention call: `queries` attend to the `keys`, runs of tokens, causally or with an additive `mask`."""

    queries: slice
    keys: tuple[slice, ...]
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
    """SDPA within the segments of `tree`; without a tree, transformers' own SDPA.

    Args:
        query: [1, heads, tokens, width]; with `predictors_only` it has only the tokens that predict: the last of each
            prompt, and all but the last of each completion.
        key, value: [1, key heads, tokens, width], of all tokens; with grouped queries there are fewer key heads.

    Returns:
        Output [1, queries, heads, width], and None in place of attention weights.
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
    calls = _all_calls(tree, query, predictors_only)
    if use_cpu_kernel(query, dropout):
        output = _CPUTreeAttention.apply(query, key, value, calls, scaling)  # type: ignore[no-untyped-call]
    else:
        output = _sdpa(query, key, value, calls, dropout, scaling)
    return output, None


def _all_calls(
    tree: Sequence[Segment],
    query: Tensor,
    predictors_only: bool,
) -> list[Call]:
    """The calls of all segments; their queries follow each other without a gap."""
    make_calls = _predictor_calls if predictors_only else _calls
    calls: list[Call] = []
    first_query = 0
    for segment in tree:
        calls += make_calls(segment, first_query, query)
        first_query = calls[-1].queries.stop
    return calls


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    calls: Sequence[Call],
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """Output [1, queries, heads, width] by torch's attention, on any device."""
    # The query is split, not sliced, because the backward of a split is one concatenation.
    lengths = [_length(call.queries) for call in calls]
    queries = query.split(lengths, 2)
    outputs = []
    for call, call_query in zip(calls, queries, strict=True):
        call_key = _runs(key, call.keys)
        call_value = _runs(value, call.keys)
        if call.mask is None:
            output = F.scaled_dot_product_attention(
                call_query,
                call_key,
                call_value,
                dropout_p=dropout,
                is_causal=call.causal,
                scale=scaling,
                enable_gqa=True,
            )
        else:
            output = _masked(
                call_query, call_key, call_value, call.mask, dropout, scaling
            )
        outputs.append(output)
    # [1, heads, queries, width] -> [1, queries, heads, width]
    return torch.cat(outputs, 2).transpose(1, 2).contiguous()


def _masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """Output [1, heads, queries, width] of attention with an additive mask.

    With a mask `enable_gqa` would leave all kernels of a GPU but the one that writes every weight to memory. So the
    queries of a group become entries of a batch, all of them over the same keys: a stride of 0 in place of copies.
    """
    group_size = query.shape[1] // key.shape[1]
    # [1, key heads x group, queries, width] -> [group, key heads, queries, width]
    grouped = query[0].unflatten(0, (-1, group_size)).transpose(0, 1)
    with sdpa_kernel(_STRIDED_KERNELS):
        output = F.scaled_dot_product_attention(
            grouped,
            key.expand(group_size, -1, -1, -1),
            value.expand(group_size, -1, -1, -1),
            mask,
            dropout,
            scale=scaling,
        )
    return output.transpose(0, 1).flatten(0, 1).unsqueeze(0)


def install(language_model: Any) -> None:
    """Make a language model attend by trees when it is given one; without one it is SDPA as before."""
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    language_model.config._attn_implementation = NAME


def use_cpu_kernel(query: Tensor, dropout: float) -> bool:
    """Whether attention goes through `_CPUTreeAttention`; its kernel knows no dropout."""
    return query.device.type == "cpu" and not dropout


def _calls(
    segment: Segment,
    first_query: int,
    query: Tensor,
) -> Iterator[Call]:
    """Calls of a segment, in the order of the tokens that ask; `first_query` is the segment's start."""
    prompt_end = segment.start + segment.prompt
    prompt = slice(segment.start, prompt_end)
    yield Call(prompt, (prompt,), causal=True, mask=None)
    if segment.mask is not None:
        completions = slice(prompt_end, segment.stop)
        everything = slice(segment.start, segment.stop)
        mask = segment.mask.to(query.dtype)
        yield Call(completions, (everything,), causal=False, mask=mask)
        return
    start = prompt_end
    for length in segment.lengths:
        completion = slice(start, start + length)
        # SDPA's own causal mask would be aligned to the first key, not to the last.
        future = query.new_full((length, length), float("-inf")).triu(1)
        mask = F.pad(future, (segment.prompt, 0))
        yield Call(completion, (prompt, completion), causal=False, mask=mask)
        start = completion.stop


def _predictor_calls(
    segment: Segment,
    first_query: int,
    query: Tensor,
) -> Iterator[Call]:
    """The same for a query of predicting tokens alone, of which the segment's begin at `first_query`.

    Of the calls of `_calls` the prompt's keeps its last query, a completion's all but its last; keys stay as they are.
    """
    prompt_call, *completion_calls = _calls(segment, first_query, query)
    start = first_query + 1
    # The prompt's last token sees the whole prompt: no mask.
    last_of_prompt = slice(first_query, start)
    yield Call(last_of_prompt, prompt_call.keys, causal=False, mask=None)
    in_one_call = segment.mask is not None
    for index, call in enumerate(completion_calls):
        assert call.mask is not None
        # The completions whose queries are in this call.
        lengths = segment.lengths
        if not in_one_call:
            lengths = lengths[index : index + 1]
        predicting = _all_but_last(lengths)
        # A completion of one token predicts nothing.
        if not predicting:
            continue
        queries = slice(start, start + len(predicting))
        mask = call.mask[predicting]
        yield Call(queries, call.keys, causal=False, mask=mask)
        start = queries.stop


def _all_but_last(lengths: Sequence[int]) -> list[int]:
    """Positions of all tokens but the last of each completion; completions of these lengths follow each other."""
    positions: list[int] = []
    start = 0
    for length in lengths:
        end = start + length
        positions += range(start, end - 1)
        start = end
    return positions


def _length(run: slice) -> int:
    return int(run.stop - run.start)


def _runs(
    states: Tensor,
    runs: Sequence[slice],
) -> Tensor:
    """Runs of tokens out of keys or values [1, heads, tokens, width], one behind the other."""
    parts = [states[:, :, run] for run in runs]
    # A single run stays a view.
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, 2)


def _add_runs(
    total: Tensor,
    runs: Sequence[slice],
    addend: Tensor,
) -> None:
    """Add what is laid out as the result of `_runs` to those runs of `total`, in place."""
    start = 0
    for run in runs:
        stop = start + _length(run)
        total[:, :, run] += addend[:, :, start:stop]
        start = stop


class _CPUTreeAttention(torch.autograd.Function):
    """Tree attention as one function with output [1, queries, heads, width].

    Saved are query, key, value, output and the kernel's log-sum-exp per call; no copy of keys or values that several
    calls see. The kernel knows grouped queries itself.
    """

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
        output = query.new_empty(batch, tokens, heads, width)
        log_sums = []
        for call in calls:
            call_output, log_sum = _flash_forward(
                query[:, :, call.queries],
                _runs(key, call.keys),
                _runs(value, call.keys),
                0.0,
                call.causal,
                attn_mask=call.mask,
                scale=scale,
            )
            output[:, call.queries] = call_output.transpose(1, 2)
            log_sums.append(log_sum)
        ctx.save_for_backward(query, key, value, output, *log_sums)
        ctx.calls = calls
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        query, key, value, output, *log_sums = ctx.saved_tensors
        # Every query is in one call, keys and values in several: theirs are added up.
        grad_query = torch.empty_like(query)
        grad_key = torch.zeros_like(key)
        grad_value = torch.zeros_like(value)
        for call, log_sum in zip(ctx.calls, log_sums, strict=True):
            grads = _flash_backward(
                grad[:, call.queries].transpose(1, 2),
                query[:, :, call.queries],
                _runs(key, call.keys),
                _runs(value, call.keys),
                output[:, call.queries].transpose(1, 2),
                log_sum,
                0.0,
                call.causal,
                attn_mask=call.mask,
                scale=ctx.scale,
            )
            grad_query[:, :, call.queries] = grads[0]
            _add_runs(grad_key, call.keys, grads[1])
            _add_runs(grad_value, call.keys, grads[2])
        return grad_query, grad_key, grad_value, None, None
