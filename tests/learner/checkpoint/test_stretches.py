"""However the ranks have cut the parameters up, whoever reads gets the same elements."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import learner.checkpoint.stretches
from common.protocols import Slot
from learner.checkpoint.stretches import (
    MASTER,
    SavedStretches,
    fill,
    named_tensors,
    stretches_of,
)

SHAPES = {"a.weight": (7, 5), "b/odd.name": (1,), "c": (2, 3, 4), "d.scalar": ()}


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner.checkpoint.stretches, "STRETCH_NUMEL", 4)


def parameters() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()
    }


def replicated(values: dict[str, torch.Tensor]) -> list[Slot]:
    slots = []
    for name, value in values.items():
        shape = tuple(value.shape)
        slots.append(Slot(name, shape, 0, value.numel(), value, 0, replicated=True))
    return slots


def flat(
    values: dict[str, torch.Tensor], draw: random.Random, world: int
) -> list[list[Slot]]:
    """The parameters one behind the other, cut at random places: a rank's tensor has some padding in front."""
    whole = torch.cat([value.reshape(-1) for value in values.values()])
    cuts = sorted(draw.choices(range(len(whole) + 1), k=world - 1))
    edges = [0, *cuts, len(whole)]
    of_ranks: list[list[Slot]] = []
    for first, last in pairwise(edges):
        tensor = torch.cat([torch.full((3,), torch.nan), whole[first:last]])
        slots = []
        begin = 0
        for name, value in values.items():
            end = begin + value.numel()
            start, stop = max(first, begin), min(last, end)
            if start < stop:
                offset = 3 + start - first
                slot = Slot(
                    name,
                    tuple(value.shape),
                    start - begin,
                    stop - start,
                    tensor,
                    offset,
                )
                slots.append(slot)
            begin = end
        of_ranks.append(slots)
    return of_ranks


def write(of_ranks: list[list[Slot]], folder: Path) -> SavedStretches:
    """Every rank's masters in a file of its own."""
    optimizer = torch.optim.AdamW([torch.zeros(1)])
    world = len(of_ranks)
    for rank, slots in enumerate(of_ranks):
        stretches = stretches_of(slots, rank, world)
        part = {}
        for name, tensor in named_tensors(stretches, optimizer, updates=0):
            part[name] = tensor.clone()
        save_file(part, folder / f"rank_{rank}.safetensors")
    return SavedStretches(sorted(folder.glob("rank_*")))


@pytest.mark.parametrize("seed", range(8))
def test_flat_tensors_are_read_as_others_cut_them(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    values = parameters()
    saved = write(flat(values, draw, draw.randint(1, 5)), tmp_path)
    for slots in flat(values, draw, draw.randint(1, 5)):
        for slot in slots:
            expected = slot.tensor[slot.offset : slot.offset + slot.numel]
            actual = saved.read(MASTER, slot.name, slot.start, slot.numel)
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_that_hold_the_same_write_it_once(world: int, tmp_path: Path) -> None:
    values = parameters()
    saved = write([replicated(values)] * world, tmp_path)
    optimizer = torch.optim.AdamW([torch.zeros(1)])
    for slot in replicated(
        {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    ):
        read = saved.read(MASTER, slot.name, 0, slot.numel)
        fill(slot, MASTER, read, optimizer)
        assert torch.equal(slot.tensor, values[slot.name])
    num_bytes = sum(4 * value.numel() for value in values.values())
    written = 0
    for file in tmp_path.iterdir():
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        written += file.stat().st_size - header
    assert written == num_bytes


def test_what_is_in_no_file_is_said(tmp_path: Path) -> None:
    values = parameters()
    write([replicated(values)] * 2, tmp_path)
    saved = SavedStretches([tmp_path / "rank_0.safetensors"])
    with pytest.raises(ValueError, match=r"no master of a\.weight from element 17 on"):
        saved.read(MASTER, "a.weight", 0, 35)
    with pytest.raises(ValueError, match="no exp_avg of c from element 0 on"):
        saved.read("exp_avg", "c", 0, 24)


def test_parameters_in_another_order_of_memory_are_filled() -> None:
    weight = torch.zeros(3, 2).t()
    (slot,) = replicated({"w": weight})
    fill(slot, MASTER, torch.arange(6.0), torch.optim.AdamW([torch.zeros(1)]))
    assert weight.tolist() == [[0, 1, 2], [3, 4, 5]]
