"""Broadcasts of weights within one process, and the plan of a push of the fake policy."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from common.protocols import Tensors
from common.push.meeting import Meeting, PushBroken
from common.push.plan import PushPlan, TensorSpec


class FakeMeetings:
    """Groups of pushes within this process: all members come, or none gets anything."""

    def __init__(self) -> None:
        self._num_here: Counter[str] = Counter()
        self._sent: dict[str, asyncio.Future[Tensors | None]] = {}
        self._broken: dict[str, str] = {}

    async def send(self, meeting: Meeting, tensors: Tensors) -> str:
        """Give the tensors to all others; says why not, where they do not come."""
        sent = self._future(meeting)
        end = time.monotonic() + meeting.timeout_s
        while self._num_here[meeting.key] < meeting.num_members - 1:
            broken = self._broken.get(meeting.key, "")
            if time.monotonic() > end:
                broken = f"not all {meeting.num_members} members came"
            if broken:
                sent.set_result(None)
                return broken
            await asyncio.sleep(0.001)
        sent.set_result(tensors)
        return ""

    def break_off(self, meeting: Meeting, reason: str) -> None:
        """Let the sender, and with it all others, hear that a member is gone."""
        self._broken[meeting.key] = reason

    async def receive(self, meeting: Meeting) -> Tensors:
        self._num_here[meeting.key] += 1
        tensors = await self._future(meeting)
        if tensors is None:
            raise PushBroken("a member did not come")
        return tensors

    def _future(self, meeting: Meeting) -> asyncio.Future[Tensors | None]:
        if meeting.key not in self._sent:
            self._sent[meeting.key] = asyncio.get_running_loop().create_future()
        return self._sent[meeting.key]


MEETINGS = FakeMeetings()
PLAN = PushPlan((TensorSpec("bias", "float32", (1,)),), 1 << 20, "fake")
