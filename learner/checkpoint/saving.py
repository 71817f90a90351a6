"""Writes a rank's part of a checkpoint: first copied, so that the next steps may change what is being written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.paths import writing
from common.protocols import TrainEngine
from learner.checkpoint.header import Header
from learner.checkpoint.random_state import random_state
from learner.checkpoint.stretches import (
    MOMENTS,
    PART_BYTES,
    named_tensors,
    stretches_of,
)

Part = dict[str, Tensor]
"""What becomes one file, by the tensors' names in it."""


@dataclass(frozen=True, slots=True)
class RankState:
    """All that one rank writes.

    Attributes:
        parts: copies on the CPU; made one after the other as they are asked for, or a list of all.
        random: the rank's random state.
        header: of the checkpoint, on rank 0.
    """

    rank: int
    parts: Iterable[Part]
    random: Part
    header: Header | None

    def copied(self) -> RankState:
        """The same with everything copied: it stays as it is now."""
        return replace(self, parts=list(self.parts))

    def write(self, directory: Path) -> None:
        """Write the files; each is on disk when this returns.

        Raises:
            OSError: they cannot be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        for number, part in enumerate(self.parts):
            _write(directory / f"rank_{self.rank}_{number:03}.safetensors", part)
        _write(directory / f"rank_{self.rank}_random.safetensors", self.random)
        if self.header is not None:
            self.header.write(directory)


def state_of(engine: TrainEngine, counters: Mapping[str, float]) -> RankState:
    """This rank's state; its parts are read from the engine as they are asked for."""
    header = None
    if engine.rank == 0:
        header = Header(
            world_size=engine.world_size,
            updates=engine.schedule.last_epoch,
            parameters=dict(engine.shapes),
            counters=dict(counters),
        )
    return RankState(engine.rank, _parts(engine), random_state(), header)


def num_bytes(engine: TrainEngine) -> int:
    """What this rank writes, without random state and header."""
    total = 0
    num_kinds = 1 + (len(MOMENTS) if engine.schedule.last_epoch else 0)
    for stretch in stretches_of(engine.slots(), engine.rank, engine.world_size):
        total += stretch.numel * stretch.tensor.element_size() * num_kinds
    return total


def _parts(engine: TrainEngine) -> Iterator[Part]:
    stretches = stretches_of(engine.slots(), engine.rank, engine.world_size)
    tensors = named_tensors(stretches, engine.optimizer, engine.schedule.last_epoch)
    part: Part = {}
    part_bytes = 0
    for name, tensor in tensors:
        if part and part_bytes + tensor.nbytes > PART_BYTES:
            yield _settled(part)
            part, part_bytes = {}, 0
        part[name] = _copy(tensor)
        part_bytes += tensor.nbytes
    if part:
        yield _settled(part)


def _settled(part: Part) -> Part:
    """The part when its copies are whole."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return part


def _copy(tensor: Tensor) -> Tensor:
    """A copy in the CPU's memory, from a GPU one that goes on after the call."""
    from_gpu = tensor.device.type == "cuda"
    # torch keeps pinned memory for the next checkpoint: to take it from the system is slow.
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=from_gpu)
    return copy.copy_(tensor, non_blocking=from_gpu)


def _write(file: Path, tensors: Part) -> None:
    with writing(file):
        save_file(tensors, file)
        # A rename of the folder may reach the disk before its files do.
        with file.open("rb") as written:
            os.fsync(written.fileno())
