"""Reads a checkpoint into an engine, whoever wrote it: another number of ranks, ZeRO stage or engine."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.errors import UserError
from common.protocols import TrainEngine
from common.seeding import derive_seed
from learner.checkpoint.header import Header, read_header
from learner.checkpoint.random_state import seed_all, set_random_state
from learner.checkpoint.stretches import (
    MASTER,
    MOMENTS,
    PARTS,
    SavedStretches,
    fill,
    stretches_of,
)

_DAMAGE = (OSError, SafetensorError, ValueError, KeyError, RuntimeError)
"""What files raise that are missing, cut off, overwritten or of another model."""


def load(directory: Path, engine: TrainEngine) -> Header:
    """Restore masters, moments, weights and schedule (collective). Every rank reads what it keeps, and no more.

    Raises:
        UserError: no checkpoint, a damaged one, or one of another model or version.
    """
    header = read_header(directory)
    try:
        header.check_parameters(dict(engine.shapes))
        saved = SavedStretches(sorted(directory.glob(PARTS)))
        with torch.no_grad(), engine.restoring():
            _restore(engine, saved, header.updates)
    except _DAMAGE as error:
        raise _damaged(directory, error) from error
    _restore_schedule(engine, header.updates)
    return header


def restore_random_state(
    directory: Path, header: Header, rank: int, seed: int
) -> str | None:
    """Go on with the random numbers of this rank; says so in a line where it has none, and begins from the seed.

    Raises:
        UserError: its file is damaged.
    """
    if rank >= header.world_size:
        seed_all(derive_seed(seed, "learner", rank, "resumed", header.updates))
        return (
            f"learner rank {rank}: random state begins anew from run.seed, as the checkpoint was written by "
            f"{header.world_size} ranks"
        )
    file = directory / f"rank_{rank}_random.safetensors"
    try:
        set_random_state(load_file(file))
    except _DAMAGE as error:
        raise _damaged(directory, error) from error
    return None


def _restore(engine: TrainEngine, saved: SavedStretches, updates: int) -> None:
    slots = engine.slots()
    optimizer = engine.optimizer
    # Many slots lie in one tensor.
    for tensor in {id(slot.tensor): slot.tensor for slot in slots}.values():
        _prepare_moments(tensor, optimizer, updates)
    kinds = (MASTER, *MOMENTS) if updates else (MASTER,)
    # All of the slots, as a single rank would write them: no more than a stretch is read at a time.
    for stretch in stretches_of(slots, rank=0, world_size=1):
        for kind in kinds:
            values = saved.read(kind, stretch.name, stretch.start, stretch.numel)
            fill(stretch, kind, values, optimizer)


def _prepare_moments(
    tensor: Tensor,
    optimizer: torch.optim.Optimizer,
    updates: int,
) -> None:
    """What AdamW keeps of a tensor after so many updates, to be filled; padding stays 0."""
    state = optimizer.state[tensor]
    if not state and not updates:
        # AdamW makes it at its first step.
        return
    state["step"] = torch.tensor(updates, dtype=torch.float32, device=tensor.device)
    for kind in MOMENTS:
        if kind not in state:
            state[kind] = torch.zeros_like(tensor)
        elif not updates:
            # In place: DeepSpeed has views of them.
            state[kind].zero_()


def _restore_schedule(engine: TrainEngine, updates: int) -> None:
    schedule = engine.schedule
    rates: list[float] = []
    for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True):
        rates.append(float(base * factor(updates)))
    # torch counts the call of its constructor, too.
    progress = {"last_epoch": updates, "_step_count": updates + 1, "_last_lr": rates}
    schedule.load_state_dict({**schedule.state_dict(), **progress})
    for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _damaged(directory: Path, error: Exception) -> UserError:
    # Some of these errors have no message, others one of many lines.
    message = str(error).strip() or type(error).__name__
    return UserError(
        f"checkpoint {directory}: expected the learner's saved state, got: {message.splitlines()[0]}; resume from an "
        "older one"
    )
