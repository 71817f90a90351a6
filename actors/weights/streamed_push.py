"""In the rollout worker: a push that comes in buckets from the learner straight into the engine's workers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
from common.push.waiting import LONGEST_NAP_S, told
from common.weights import to_arrays


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

    async def wait_until_ready(self, limit_s: float) -> None:
        """Return when the learner's first bucket is full: it may do much before, such as score the probe.

        Raises:
            PushBroken: that takes longer than `limit_s`, or a member says that it will never be.
            Unreachable: the learner is not there.
        """
        store = await asyncio.to_thread(self.meeting.store)
        end = time.monotonic() + limit_s
        while not await asyncio.to_thread(self._is_ready, store):
            if time.monotonic() > end:
                raise self._unready(f"nothing within {limit_s:g} s")
            await asyncio.sleep(LONGEST_NAP_S)

    def _is_ready(self, store: Any) -> bool:
        try:
            if store.check([READY]):
                return True
            reason = told(store)
        except RuntimeError as error:
            # The learner is gone, and its store with it.
            reason = str(error)
        if reason:
            raise self._unready(reason)
        return False

    def _unready(self, got: str) -> PushBroken:
        meeting = self.meeting
        first_line = got.partition("\n")[0]
        return PushBroken(
            f"weights {self.version}: expected the learner at {meeting.address}:{meeting.port} to send, got: "
            f"{first_line}; see its log, or raise loop.call_timeout_s"
        )

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

    def update(self, kept: Collection[str], kept_in: str) -> dict[str, Any]:
        """`actors.weights.receiver.Update`, as vLLM takes it."""
        return {
            "plan": self.plan.to_json(),
            "kept": list(kept),
            "kept_in": kept_in,
        }


class KeptTensors:
    """Memory where an engine's first worker leaves tensors of a push that the rollout worker wants, too.

    It stands in no folder, and ends with this process. It is an engine's for good: a load that was given up may still
    write there, and must not meet another file under the same number.
    """

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("sightline-kept")

    @property
    def path(self) -> str:
        """For other processes of this user."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @contextmanager
    def taken(self) -> Iterator[Tensors]:
        """What lies there, mapped; gone afterwards."""
        try:
            tensors = {}
            if os.fstat(self._descriptor).st_size:
                tensors = load_file(self.path)
            yield to_arrays(tensors.items())
        finally:
            os.ftruncate(self._descriptor, 0)


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
