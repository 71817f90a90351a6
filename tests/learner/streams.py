"""A learner's streamed push, received by a thread beside it."""

from __future__ import annotations

import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from common.machine.address import LOOPBACK
from common.push.meeting import Meeting, join, network_id
from common.records import WeightManifest
from learner.learner import Learner
from tests.common.push.members import CPU, received

_NUMBERS = itertools.count()


def streamed(
    learner: Learner, version: int
) -> tuple[WeightManifest | None, dict[str, Tensor]]:
    """What engines would get of a push that all ranks take part in; nothing on ranks other than 0."""
    key = f"{version}/{next(_NUMBERS)}"
    if learner.rank > 0:
        elsewhere = Meeting(LOOPBACK, 0, key, "gloo", 2, 60.0)
        assert learner.push(version, elsewhere) == (None, "")
        return None, {}
    place = learner.meeting_place([network_id()])
    assert place.address == LOOPBACK
    meeting = Meeting(place.address, place.port, key, "gloo", 2, 60.0)
    with ThreadPoolExecutor(1) as thread:
        receiving: Future[Any] = thread.submit(_joined, learner, meeting)
        manifest, broken = learner.push(version, meeting)
        assert broken == ""
        return manifest, receiving.result()


def _joined(learner: Learner, meeting: Meeting) -> dict[str, Tensor]:
    group = join(meeting, 1, meeting.store(), CPU)
    tensors = received(learner.plan_push(), group)
    group.leave()
    return tensors
