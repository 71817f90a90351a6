"""Memory is lent to one bucket at a time."""

from __future__ import annotations

import torch

from common.push.buffers import Buffers

CPU = torch.device("cpu")


def test_memory_is_used_again_only_when_nobody_keeps_a_part_of_it() -> None:
    buffers = Buffers(1024, CPU)
    first = buffers.take(1024)
    address = first.data_ptr()
    part = first[512:].view(torch.float32)
    part.fill_(1)
    del first
    second = buffers.take(1000)
    assert second.data_ptr() != address
    second.zero_()
    # What was kept is as it was.
    assert part.sum().item() == 128
    del part
    assert buffers.take(8).data_ptr() == address


def test_a_buffer_has_the_size_that_was_asked_for() -> None:
    buffers = Buffers(1024, CPU)
    assert buffers.take(100).shape == (100,)
    assert buffers.take(1024).shape == (1024,)
