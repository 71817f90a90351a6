"""The MLP in one function against its three modules, values and gradients, however its tokens are cut."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import learner.forward.gated_mlp
from learner.forward.gated_mlp import can_fuse, gated_mlp
from learner.forward.onednn import install
from tests.learner.families import family

WIDTH, INNER = 6, 10
NAMES = ("gate_proj", "up_proj", "down_proj")


class MLP(nn.Module):
    """The three layers of a gated MLP, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, INNER, bias=False).double()
        self.up_proj = nn.Linear(WIDTH, INNER, bias=False).double()
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False).double()

    def forward(self, hidden: Tensor) -> Tensor:
        """The formula, module by module."""
        gate = nn.functional.silu(self.gate_proj(hidden))
        return self.down_proj(gate * self.up_proj(hidden))  # type: ignore[no-any-return]


def make_case() -> tuple[MLP, Tensor]:
    """An MLP and hidden states of two rows of four tokens."""
    torch.manual_seed(0)
    mlp = MLP()
    return mlp, torch.randn(2, 4, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("frozen", [(), NAMES[:1], NAMES[1:], NAMES])
@pytest.mark.parametrize("tokens", [1, 3, 4, 100])
@pytest.mark.parametrize("input_trains", [True, False])
def test_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
    frozen: tuple[str, ...],
    tokens: int,
    input_trains: bool,
) -> None:
    monkeypatch.setattr(learner.forward.gated_mlp, "CACHE_BYTES", 0)
    monkeypatch.setattr(learner.forward.gated_mlp, "MIN_TOKENS", tokens)
    mlp, hidden = make_case()
    for name in frozen:
        getattr(mlp, name).requires_grad_(False)
    hidden.requires_grad_(input_trains)
    tensors = [hidden, *mlp.parameters()]
    inputs = [tensor for tensor in tensors if tensor.requires_grad]
    ours = gated_mlp(mlp, hidden)
    theirs = mlp(hidden)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    if inputs:
        slope = torch.linspace(-1, 2, ours.numel(), dtype=torch.float64).view_as(ours)
        actual = torch.autograd.grad(ours, inputs, slope)
        expected = torch.autograd.grad(theirs, inputs, slope)
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("nothing_is_small")
def test_through_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in float32, in runs of 3 tokens, so that gradients of the weights are added up."""
    monkeypatch.setattr(learner.forward.gated_mlp, "CACHE_BYTES", 0)
    monkeypatch.setattr(learner.forward.gated_mlp, "MIN_TOKENS", 3)
    runs = []
    for installed in (True, False):
        mlp, hidden = make_case()
        mlp = mlp.float()
        hidden = hidden.float().requires_grad_()
        if installed:
            install(mlp)
        output = gated_mlp(mlp, hidden)
        slope = torch.linspace(-1, 2, output.numel()).view_as(output)
        (output * slope).sum().backward()
        gradients = [tensor.grad for tensor in (hidden, *mlp.parameters())]
        runs.append([output, *gradients])
    torch.testing.assert_close(runs[0], runs[1])


def test_twice_through_one_graph_and_kept_buffers_stay() -> None:
    """Backward writes into buffers of its own only: a second pass over the same graph finds the same."""
    mlp, hidden = make_case()
    output = gated_mlp(mlp, hidden.requires_grad_()).sum()
    inputs = [hidden, mlp.down_proj.weight]
    first = torch.autograd.grad(output, inputs, retain_graph=True)
    second = torch.autograd.grad(output, inputs, retain_graph=True)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_no_gradient_keeps_nothing() -> None:
    mlp, hidden = make_case()
    with torch.no_grad():
        assert gated_mlp(mlp, hidden).grad_fn is None


def test_other_mlps_are_left_alone() -> None:
    model = family("llava").model
    mlp = model.model.language_model.layers[0].mlp
    assert can_fuse(mlp)
    config = LoraConfig(r=2, target_modules=["up_proj"])
    adapted = get_peft_model(nn.ModuleDict({"mlp": MLP()}), config)
    assert not can_fuse(adapted.base_model.model["mlp"])
    split_by_zero3 = MLP()
    split_by_zero3.up_proj.weight.ds_id = 0  # type: ignore[attr-defined]
    assert not can_fuse(split_by_zero3)
