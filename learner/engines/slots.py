"""Where each engine keeps the optimizer's state of a parameter: whole, or in pieces of flat tensors under ZeRO.

    torch, ZeRO-0   the parameters themselves, the same on all ranks
    ZeRO-1, 2       one flat tensor per rank; the parameters lie in all ranks' tensors, one behind the other
    ZeRO-3          flat tensors of pieces; every parameter is cut into as many as there are ranks

DeepSpeed has getters of its own, which gather whole parameters on every rank. Here a rank sees what it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from common.protocols import Slot


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the trained parameters by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in _trainable(module):
        # ZeRO-3 leaves a parameter its piece only, and says what the whole is.
        shapes[name] = tuple(getattr(parameter, "ds_shape", parameter.shape))
    return shapes


def whole_slots(module: nn.Module) -> list[Slot]:
    """Of an optimizer that steps the parameters of the module."""
    slots: list[Slot] = []
    for name, parameter in _trainable(module):
        shape = tuple(parameter.shape)
        numel = parameter.numel()
        slots.append(Slot(name, shape, 0, numel, parameter, 0, replicated=True))
    return slots


def flat_slots(module: nn.Module, zero: Any) -> list[Slot]:
    """Of DeepSpeed's optimizer of ZeRO-1 and 2; a parameter that lies with other ranks has none."""
    slots: list[Slot] = []
    for name, parameter in _trainable(module):
        fragment = parameter._hp_mapping
        if fragment is None:
            continue
        flat = zero.single_partition_of_fp32_groups[fragment.param_group_index]
        here = fragment.lp_fragment_address
        there = fragment.hp_fragment_address
        shape = tuple(parameter.shape)
        slots.append(Slot(name, shape, here.start, here.numel, flat, there.start))
    return slots


def cut_slots(module: nn.Module, zero: Any, rank: int) -> list[Slot]:
    """Of DeepSpeed's optimizer of ZeRO-3. The last piece of a parameter may be padded, or nothing else."""
    slots: list[Slot] = []
    for name, parameter in _trainable(module):
        key = zero.get_param_id(parameter)
        group, offset, piece = zero.grad_position[key]
        start = rank * piece
        numel = min(piece, parameter.ds_numel - start)
        if numel > 0:
            flat = zero.fp32_partitioned_groups_flat[group]
            shape = tuple(parameter.ds_shape)
            slots.append(Slot(name, shape, start, numel, flat, offset))
    return slots


def _trainable(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters that DeepSpeed gives further attributes, so that their type says nothing."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
