"""Buckets over NCCL and over a shared GPU, between two processes; the code around them is tested over gloo."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import torch

from common.push.meeting import LOOPBACK, Meeting, MeetingPlace, join
from common.push.plan import PushPlan
from tests.common.push.members import named, plan_of, received, sent

pytestmark = pytest.mark.gpu


def weights_on(device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for number in range(8):
        values = torch.randn(300, 500 + number, generator=generator)
        weights[f"w{number}"] = values.bfloat16().to(device)
    return weights


def receive_on(device: str, meeting: Meeting, plan: Any, outcome: Any) -> None:
    """In a process of its own: put down whether what came is what was sent."""
    group = join(meeting, 1, meeting.store(), torch.device(device))
    arrived = received(PushPlan.of_json(plan), group)
    group.leave()
    expected = weights_on(device)
    outcome.put(all(torch.equal(arrived[name], expected[name]) for name in expected))


@pytest.mark.parametrize("backend", ["ipc", "nccl"])
def test_another_process_gets_every_bit(backend: str) -> None:
    if backend == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL takes a GPU once")
    receiver_device = "cuda:0" if backend == "ipc" else "cuda:1"
    place = MeetingPlace(LOOPBACK)
    meeting = Meeting(LOOPBACK, place.port, "gpu", backend, 2, 60.0)
    device = torch.device("cuda:0")
    weights = weights_on("cuda:0")
    plan = plan_of(weights, bucket_bytes=1 << 19)
    processes = multiprocessing.get_context("spawn")
    outcome = processes.Queue()
    receiver = processes.Process(
        target=receive_on, args=(receiver_device, meeting, plan.to_json(), outcome)
    )
    receiver.start()
    sent(plan, named(plan, weights), place, meeting, device)
    assert outcome.get(timeout=60)
    receiver.join(60)
