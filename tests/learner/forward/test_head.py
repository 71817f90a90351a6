"""The fused head against torch's own log softmax, values and gradients, however chunks fall."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import learner.forward.head
import learner.forward.onednn
from learner.forward.head import fused_token_logps

WIDTH, VOCABULARY, POSITIONS = 6, 11, 9
ROW = VOCABULARY * 8
"""Bytes of the logits of a position, in float64."""


def make_case(bias: bool) -> tuple[nn.Linear, Tensor, Tensor]:
    """A head, hidden states and targets."""
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias).double()
    hidden = torch.randn(POSITIONS, WIDTH, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(VOCABULARY, (POSITIONS,))
    return head, hidden, targets


def plain_logps(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """The same from the whole logits."""
    all_logps = head(hidden).log_softmax(-1)
    return all_logps.gather(1, targets[:, None]).squeeze(1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 5, 100])
def test_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
    bias: bool,
    frozen: bool,
    chunk: int,
) -> None:
    monkeypatch.setattr(learner.forward.head, "CHUNK_BYTES", chunk * ROW)
    head, hidden, targets = make_case(bias)
    head.requires_grad_(not frozen)
    inputs = [hidden]
    if not frozen:
        inputs += head.parameters()
    ours = fused_token_logps(head, hidden, targets)
    theirs = plain_logps(head, hidden, targets)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    # Another incoming gradient for each position.
    slope = torch.linspace(-2, 3, POSITIONS, dtype=torch.float64)
    our_gradients = torch.autograd.grad(ours, inputs, slope)
    their_gradients = torch.autograd.grad(theirs, inputs, slope)
    torch.testing.assert_close(our_gradients, their_gradients, atol=1e-12, rtol=1e-12)


def test_no_gradient_keeps_nothing() -> None:
    head, hidden, targets = make_case(False)
    with torch.no_grad():
        logps = fused_token_logps(head, hidden, targets)
    assert logps.grad_fn is None
    with_gradient = fused_token_logps(head, hidden, targets)
    torch.testing.assert_close(logps, with_gradient.detach())


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch, frozen: bool) -> None:
    """9 positions in chunks of 2: one is kept, of a frozen head none; nothing else is as wide as the vocabulary."""
    monkeypatch.setattr(learner.forward.head, "CHUNK_BYTES", 2 * ROW)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    head, hidden, targets = make_case(False)
    head.requires_grad_(not frozen)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fused_token_logps(head, hidden, targets)
    chunk_lengths: list[int] = []
    for tensor in saved:
        if tensor.ndim == 2 and tensor.shape[1] == VOCABULARY:
            chunk_lengths.append(len(tensor))
    assert chunk_lengths == ([] if frozen else [2])


def test_extreme_logits_stay_finite() -> None:
    head, hidden, targets = make_case(False)
    hidden = hidden.detach() * 1e4
    logps = fused_token_logps(head, hidden, targets)
    assert torch.isfinite(logps).all()
    torch.testing.assert_close(logps, plain_logps(head, hidden, targets))


def test_bfloat16_accumulates_in_float32() -> None:
    head, hidden, targets = make_case(False)
    head = head.to(torch.bfloat16)
    hidden = hidden.detach().to(torch.bfloat16).requires_grad_()
    logps = fused_token_logps(head, hidden, targets)
    assert logps.dtype == torch.float32
    logps.sum().backward()
    assert hidden.grad is not None
    assert head.weight.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    assert head.weight.grad.dtype == torch.bfloat16


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("frozen", [False, True])
def test_through_onednn(monkeypatch: pytest.MonkeyPatch, frozen: bool) -> None:
    """The same in float32, in several chunks."""
    monkeypatch.setattr(learner.forward.head, "CHUNK_BYTES", 4 * ROW)
    gradients = []
    for installed in (True, False):
        head, hidden, targets = make_case(True)
        head = head.float().requires_grad_(not frozen)
        hidden = hidden.detach().float().requires_grad_()
        if installed:
            learner.forward.onednn.install(head)
        fused_token_logps(head, hidden, targets).sum().backward()
        inputs = [hidden, *head.parameters()]
        gradients.append([tensor.grad for tensor in inputs])
    torch.testing.assert_close(gradients[0], gradients[1])
