"""Buckets over NCCL and over a shared GPU, between two processes; the code around them is tested over gloo."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from common.machine.address import LOOPBACK
from common.push.meeting import Meeting, MeetingPlace, join
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


@pytest.fixture
def expandable_segments() -> Iterator[None]:
    """As a learner on DeepSpeed has them; a GPU that was in use before has other segments as well."""
    before = torch._C._accelerator_getAllocatorSettings()
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    yield
    torch._C._accelerator_setAllocatorSettings(before)


def check_another_process(backend: str, receiver_device: str) -> None:
    """It gets every bit."""
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


def test_a_process_on_the_same_gpu() -> None:
    check_another_process("ipc", "cuda:0")


@pytest.mark.usefixtures("expandable_segments")
def test_a_process_on_the_same_gpu_of_a_learner_with_expandable_segments() -> None:
    check_another_process("ipc", "cuda:0")


def test_a_process_on_another_gpu() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("NCCL takes a GPU once")
    check_another_process("nccl", "cuda:1")
