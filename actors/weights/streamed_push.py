"""In the rollout worker: a push that comes in buckets from the learner straight into the engine's workers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file

from common.model_parts import is_vision_side, is_vision_tower
from common.protocols import Tensors
from common.push.meeting import (
    READY,
    Meeting,
    PushBroken,
    Unreachable,
    tell_broken,
)
from common.push.plan import PushPlan
from common.weights import to_arrays

_PREFIX = "sightline-kept-"
_KEPT = "kept.safetensors"


@dataclass(frozen=True, slots=True)
class StreamedPush:
    """One push, before its first byte.

    Attributes:
        version: of its weights.
        plan: its tensors.
        meeting: where to come for them.
        first_rank: of this engine's workers there.
    """

    version: int
    plan: PushPlan
    meeting: Meeting
    first_rank: int

    def wait_until_ready(self) -> None:
        """Return when the learner's first bucket is full.

        Raises:
            PushBroken: that takes too long.
            Unreachable: the learner is not there.
        """
        store = self.meeting.store()
        try:
            store.wait([READY], self.meeting.limit)
        except RuntimeError as error:
            meeting = self.meeting
            raise PushBroken(
                f"weights {self.version}: expected the learner at {meeting.address}:{meeting.port} to send within "
                f"{meeting.timeout_s:g} s, got nothing; see its log, or raise weights.timeout_s"
            ) from error

    def tell_broken(self, reason: str) -> None:
        """Tell all members that this engine takes no more part."""
        with suppress(Unreachable):
            tell_broken(self.meeting.store(), reason)

    def names_on_vision_side(self, tower_is_frozen: bool) -> list[str]:
        """Tensors that the rollout worker encodes pictures with, without those that never change."""
        names = []
        for name in self.plan.shapes:
            changes = not (tower_is_frozen and is_vision_tower(name))
            if is_vision_side(name) and changes:
                names.append(name)
        return names

    def seat(self) -> dict[str, Any]:
        """`actors.weights.receiver.Seat`, as vLLM takes it."""
        return {"meeting": self.meeting.to_json(), "first_rank": self.first_rank}

    def update(self, kept: Collection[str], kept_in: Path) -> dict[str, Any]:
        """`actors.weights.receiver.Update`, as vLLM takes it."""
        return {
            "plan": self.plan.to_json(),
            "kept": list(kept),
            "kept_in": str(kept_in),
        }


@contextmanager
def kept_file() -> Iterator[Path]:
    """Where a worker writes tensors that the rollout worker wants, too; removed afterwards."""
    with TemporaryDirectory(prefix=_PREFIX) as folder:
        yield Path(folder) / _KEPT


def read_kept(path: Path) -> Tensors:
    """What the worker wrote: nothing where no name was wanted."""
    if not path.is_file():
        return {}
    return to_arrays(load_file(path).items())


def check_outcomes(version: int, outcomes: Collection[tuple[str, str]]) -> None:
    """Raise what went wrong in one of an engine's workers.

    Raises:
        PushBroken: the group fell apart, in the first place in another member's hands.
        RuntimeError: the learner could not be reached from here, or what arrived was damaged.
    """
    for fault, message in outcomes:
        if fault in ("damaged", "unreachable"):
            raise RuntimeError(f"weights {version}: {message}")
    for fault, message in outcomes:
        if fault:
            raise PushBroken(message)
