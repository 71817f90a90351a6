"""Grouped queries: the numbers of repeated keys and values, without their memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from learner.forward.tree import Segment, _sibling_mask
from learner.forward.tree_attention import tree_attention

HEADS, KEY_HEADS, WIDTH = 6, 2, 8
LENGTHS = (5, 7)


def segment(in_one_call: bool, prompt: int = 20) -> Segment:
    """A prompt and two completions, which go through one masked call or a call each."""
    mask = _sibling_mask(prompt, LENGTHS) if in_one_call else None
    assert (mask is not None) == in_one_call
    return Segment(0, prompt, LENGTHS, mask)


def attend(tree: Segment, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Output of a whole row."""
    call = partial(tree_attention, torch.nn.Identity(), attention_mask=None)
    output, _ = call(query, key, value, tree=[tree])
    return output


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("in_one_call", [True, False])
def test_equal_to_repeated_keys_with_gradients(in_one_call: bool) -> None:
    """In float64: keys that are repeated before attention have as many heads as queries."""
    tree = segment(in_one_call)
    torch.manual_seed(0)
    query = torch.randn(1, HEADS, tree.stop, WIDTH).double().requires_grad_()
    key = torch.randn(1, KEY_HEADS, tree.stop, WIDTH).double().requires_grad_()
    value = torch.randn(1, KEY_HEADS, tree.stop, WIDTH).double().requires_grad_()
    inputs = (query, key, value)
    grouped = attend(tree, *inputs)
    group_size = HEADS // KEY_HEADS
    repeated = attend(
        tree,
        query,
        key.repeat_interleave(group_size, 1),
        value.repeat_interleave(group_size, 1),
    )
    torch.testing.assert_close(grouped, repeated, atol=1e-12, rtol=1e-12)
    weights = torch.randn_like(grouped)
    grads = torch.autograd.grad((grouped * weights).sum(), inputs)
    expected = torch.autograd.grad((repeated * weights).sum(), inputs)
    for actual, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-12, rtol=1e-12)


class _Largest(TorchDispatchMode):
    """Remembers the largest storage that an operation has made."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple) else (result,)
        for tensor in results:
            if isinstance(tensor, Tensor):
                num_bytes = tensor.untyped_storage().nbytes()
                self.num_bytes = max(self.num_bytes, num_bytes)
        return result


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("in_one_call", [True, False])
def test_forward_makes_nothing_as_large_as_repeated_keys(in_one_call: bool) -> None:
    """4 bytes x 6 heads x 1,012 tokens x 8 would be the keys, repeated; the prompt's own call is left out."""
    tree = segment(in_one_call, prompt=1000)
    query = torch.randn(1, HEADS, 1 + sum(LENGTHS) - len(LENGTHS), WIDTH)
    key = torch.randn(1, KEY_HEADS, tree.stop, WIDTH)
    with _Largest() as largest, torch.no_grad():
        tree_attention(
            torch.nn.Identity(),
            query,
            key,
            key,
            attention_mask=None,
            tree=[tree],
            predictors_only=True,
        )
    repeated = 4 * HEADS * tree.stop * WIDTH
    assert 0 < largest.num_bytes <= repeated / 2
