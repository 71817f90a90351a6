"""Stretches of flattened parameters in safetensors files: tensors named `KIND/START/NAME`.

A stretch says itself where it belongs, so whoever reads puts together what it needs, however others have cut it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from common.protocols import Slot

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's, by torch's names."""

PARTS = "rank_*_[0-9]*.safetensors"
"""The files that hold stretches."""
STRETCH_NUMEL = 1 << 24
"""Longest stretch: safetensors reads whole tensors, so a rank that needs a few elements reads 64 MiB at most."""
PART_BYTES = 1 << 30
"""Largest file, and what is copied at a time when nothing is written in the background."""


def stretches_of(slots: Sequence[Slot], rank: int, world_size: int) -> Iterator[Slot]:
    """What a rank writes of its slots, none longer than a stretch; of replicated ones its share."""
    for slot in slots:
        begin, end = 0, slot.numel
        if slot.replicated:
            begin = slot.numel * rank // world_size
            end = slot.numel * (rank + 1) // world_size
        # Elements that do not lie in order are copied to be cut.
        is_flat = slot.tensor.is_contiguous()
        longest = STRETCH_NUMEL if is_flat else slot.numel
        for first in range(begin, end, max(1, longest)):
            numel = min(longest, end - first)
            yield replace(
                slot,
                start=slot.start + first,
                numel=numel,
                offset=slot.offset + first,
            )


def named_tensors(
    stretches: Iterable[Slot],
    optimizer: torch.optim.Optimizer,
    updates: int,
) -> Iterator[tuple[str, Tensor]]:
    """Master and moments of every stretch by their names in the files; views of the engine's memory."""
    kinds = (MASTER, *MOMENTS) if updates else (MASTER,)
    for stretch in stretches:
        for kind in kinds:
            name = f"{kind}/{stretch.start}/{stretch.name}"
            yield name, view_of(stretch, kind, optimizer)


def view_of(slot: Slot, kind: str, optimizer: torch.optim.Optimizer) -> Tensor:
    """The elements of a slot; a view, except of a parameter that does not lie in order (never under ZeRO)."""
    tensor = slot.tensor
    if kind != MASTER:
        tensor = optimizer.state[slot.tensor][kind]
    return tensor.detach().reshape(-1).narrow(0, slot.offset, slot.numel)


def fill(
    slot: Slot, kind: str, values: Tensor, optimizer: torch.optim.Optimizer
) -> None:
    """Overwrite the elements of a slot."""
    tensor = slot.tensor.detach()
    if kind != MASTER:
        tensor = optimizer.state[slot.tensor][kind]
    if tensor.numel() == slot.numel:
        # In whatever order they lie in memory.
        tensor.copy_(values.view(tensor.shape))
    else:
        tensor.view(-1).narrow(0, slot.offset, slot.numel).copy_(values)


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    numel: int
    file: Path
    key: str


class SavedStretches:
    """All stretches in a checkpoint's files, of which one is open at a time.

    Raises:
        SafetensorError: a file is damaged.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._pieces: dict[tuple[str, str], list[_Piece]] = {}
        self._file: Path | None = None
        self._open: Any = None
        for file in files:
            self._enter(file)
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece.start)

    def read(self, kind: str, name: str, start: int, numel: int) -> Tensor:
        """A stretch of one parameter, on the CPU.

        Raises:
            ValueError: some of it is in no file.
        """
        parts: list[Tensor] = []
        at, end = start, start + numel
        for piece in self._pieces.get((kind, name), ()):
            piece_end = piece.start + piece.numel
            if piece.start <= at < min(piece_end, end):
                whole = self._opened(piece.file).get_tensor(piece.key)
                last = min(piece_end, end)
                parts.append(whole[at - piece.start : last - piece.start])
                at = last
        if at < end:
            raise ValueError(f"no {kind} of {name} from element {at} on")
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _enter(self, file: Path) -> None:
        stretches = self._opened(file)
        for key in stretches.keys():  # noqa: SIM118 (safe_open is no mapping)
            kind, start, name = key.split("/", 2)
            (numel,) = stretches.get_slice(key).get_shape()
            piece = _Piece(int(start), numel, file, key)
            self._pieces.setdefault((kind, name), []).append(piece)

    def _opened(self, file: Path) -> Any:
        if file != self._file:
            # Read, not mapped: pages of a mapped file stay with the process.
            self._open = safe_open(file, framework="pt", backend="pread")
            self._file = file
        return self._open
