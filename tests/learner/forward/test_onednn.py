"""Linear layers through oneDNN: torch's own values and gradients up to float32's last bits."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import learner.forward.onednn
from common.data.images import ImageStore
from learner.forward.onednn import (
    install,
    is_plain_linear,
    matmul_of,
    mkl_is_slow,
    onednn_matmul,
    torch_matmul,
)
from learner.learner import Learner
from tests.learner.helpers import LORA, assert_same_weights, make_pairs, run_config


def test_matmul_by_hand() -> None:
    """(1, 2) · (3, 4) = 11 and (1, 2) · (5, 6) = 17, one more of each."""
    left, right = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    assert torch_matmul(left, right).tolist() == [[11, 17]]
    assert torch_matmul(left, right, torch.ones(1, 2)).tolist() == [[12, 18]]


@pytest.mark.usefixtures("nothing_is_small")
def test_onednn_is_the_same_product() -> None:
    """Also of transposed views, as gradients need them."""
    torch.manual_seed(0)
    left, right, add = torch.randn(7, 33), torch.randn(5, 33), torch.randn(7, 5)
    torch.testing.assert_close(onednn_matmul(left, right), left @ right.T)
    added = onednn_matmul(left, right, add.clone())
    torch.testing.assert_close(added, left @ right.T + add)
    torch.testing.assert_close(onednn_matmul(left.T, left.T), left.T @ left)
    wide = left.double()
    assert torch.equal(onednn_matmul(wide, wide), wide @ wide.T)


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_and_its_gradients(bias: bool, frozen: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.Linear(33, 17, bias=bias).requires_grad_(not frozen)
    ours = copy.deepcopy(theirs)
    install(ours)
    assert matmul_of(ours) is onednn_matmul
    assert matmul_of(theirs) is torch_matmul
    runs: list[list[Tensor | None]] = []
    for layer in (ours, theirs):
        hidden = torch.linspace(-1, 1, 2 * 9 * 33).view(2, 9, 33).requires_grad_()
        output = layer(hidden)
        (output * torch.linspace(0, 1, 17)).sum().backward()
        gradients = [tensor.grad for tensor in (hidden, *layer.parameters())]
        runs.append([output, *gradients])
    torch.testing.assert_close(runs[0], runs[1])
    # A rank may have no row at all.
    empty = ours(torch.zeros(0, 33, requires_grad=True))
    assert empty.shape == (0, 17)
    empty.sum().backward()


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("tuning", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_learns_the_same(
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
    tuning: dict | None,
    checkpointing: bool,
) -> None:
    weights = []
    for slow in (True, False):
        monkeypatch.setattr(
            learner.forward.onednn, "mkl_is_slow", lambda slow=slow: slow
        )
        config = run_config(
            "torch",
            tuning,
            gradient_checkpointing=checkpointing,
            fast={"onednn": True},
        )
        trainer = Learner(config)
        trainer.start()
        assert trainer.fast.onednn == slow, (
            "the two runs must differ, or this test sees nothing"
        )
        for step in range(3):
            trainer.step(step, make_pairs(store, 6, 6 * step))
        weights.append(trainer.publish(1)[1])
    assert_same_weights(weights[0], weights[1])


@pytest.mark.parametrize(
    ("maker", "slow"), [("GenuineIntel", False), ("AuthenticAMD", True)]
)
def test_intels_processors_keep_mkl(
    monkeypatch: pytest.MonkeyPatch,
    maker: str,
    slow: bool,
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: f"vendor_id : {maker}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert mkl_is_slow.__wrapped__() == slow


def test_what_is_not_a_whole_linear_layer_is_left_alone() -> None:
    assert is_plain_linear(nn.Linear(3, 4))
    assert not is_plain_linear(nn.Sequential(nn.Linear(3, 4)))
    split, gathered = nn.Linear(3, 4), nn.Linear(3, 4)
    split.weight.data = torch.empty(0)
    gathered.weight.ds_id = 0  # type: ignore[attr-defined]
    assert not is_plain_linear(split)
    assert not is_plain_linear(gathered)


def test_another_forward_keeps_torchs_matmul() -> None:
    layer = nn.Linear(3, 4)
    layer.forward = lambda hidden: hidden
    assert matmul_of(layer) is torch_matmul
