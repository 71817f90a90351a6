"""The learner's part of a run checkpoint: the engine's files, and one file per rank with random state and counters.

The caller writes to a temporary directory and renames it; nothing is renamed here.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.paths import writing
from common.protocols import TrainEngine

# What torch and DeepSpeed raise for files that are cut off or overwritten.
_DAMAGE = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    EOFError,
    AssertionError,
    AttributeError,
    pickle.UnpicklingError,
)


def save(directory: Path, engine: TrainEngine, counters: dict[str, float]) -> None:
    """Write this rank's part (collective)."""
    directory.mkdir(parents=True, exist_ok=True)
    with writing(directory):
        engine.save(directory / "engine")
    cuda_rng = []
    if torch.cuda.is_available():
        cuda_rng = torch.cuda.get_rng_state_all()
    state: dict[str, Any] = {
        "world_size": engine.world_size,
        "counters": counters,
        "rng": torch.get_rng_state(),
        "cuda_rng": cuda_rng,
    }
    file = _rank_file(directory, engine.rank)
    with writing(file):
        torch.save(state, file)


def load(directory: Path, engine: TrainEngine) -> dict[str, float]:
    """Restore engine and random state (collective); return the counters.

    Raises:
        UserError: no checkpoint, a damaged one, or one of another number of ranks.
    """
    file = _rank_file(directory, engine.rank)
    if not file.is_file():
        raise UserError(
            f"checkpoint {directory}: expected {file.name}, got no such file; resume from another checkpoint, with "
            "the learner.num_ranks it was written with"
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        written = int(state["world_size"])
        # An engine's files of another number of ranks look damaged: say the true reason below.
        if written == engine.world_size:
            engine.load(directory / "engine")
    except _DAMAGE as error:
        # Some of these errors have no message, others one of many lines.
        message = str(error).strip() or type(error).__name__
        reason = message.splitlines()[0]
        raise UserError(
            f"checkpoint {directory}: expected the learner's saved state, got: {reason}; resume from an older one"
        ) from error
    if written != engine.world_size:
        raise UserError(
            f"checkpoint {directory}: expected one written by {engine.world_size} ranks, got one of {written}; resume "
            f"with learner.num_ranks = {written}, or start a new run with model.path = the run's policy folder"
        )
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"]:
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return dict(state["counters"])


def _rank_file(directory: Path, rank: int) -> Path:
    return directory / f"rank_{rank}.pt"
