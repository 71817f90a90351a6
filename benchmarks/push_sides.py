"""Both ends of a weight push for `benchmarks.weight_push`: actors that hold weights, and actors that take them.

No end has a model. A sender has random weights in its memory, as a learner has after gathering; a receiver has done its
part when the weights are checked and lie where an engine loads them from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from common.config import Lora

if TYPE_CHECKING:
    import torch

    from common.protocols import Tensors
    from common.push.meeting import Meeting
    from common.push.plan import PushPlan
    from common.records import WeightManifest

WHOLE = (2048, 4096)
"""Of weights: 16 MiB in bfloat16."""
ADAPTER = (128, 4096)
"""Of an adapter of rank 128 on a 7B model: 1 MiB in bfloat16."""
LIMIT_S = 120.0
Stages = dict[str, float]
"""Seconds by what they were spent on."""


def random_weights(num_bytes: int, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Matrices of this shape in bfloat16 with random bits."""
    import torch

    count = max(1, round(num_bytes / (2 * math.prod(shape))))
    tensors = {}
    for number in range(count):
        bits = torch.randint(-(1 << 15), 1 << 15, shape, dtype=torch.int16)
        tensors[f"layers.{number}.weight"] = bits.view(torch.bfloat16)
    return tensors


class StoreSender:
    """The learner of a push through Ray's store."""

    def __init__(self, num_bytes: int, shape: tuple[int, int]) -> None:
        self._tensors = random_weights(num_bytes, shape)

    def raw(self) -> float:
        """Seconds of a plain copy of all weights into fresh memory."""
        import torch

        num_bytes = sum(tensor.nbytes for tensor in self._tensors.values())
        begun = time.perf_counter()
        # In one piece: the pages of small ones would be those of the last copy.
        copy = torch.empty(num_bytes, dtype=torch.uint8)
        end = 0
        for tensor in self._tensors.values():
            begin, end = end, end + tensor.nbytes
            copy[begin:end].copy_(tensor.view(-1).view(torch.uint8))
        return time.perf_counter() - begun

    def publish(self) -> tuple[tuple[WeightManifest, Stages], Tensors]:
        """Manifest and arrays, made as a learner makes them."""
        from common.records import WeightManifest
        from common.weights import checksum, to_arrays

        begun = time.perf_counter()
        arrays = to_arrays(self._tensors.items())
        digest = checksum(arrays)
        num_bytes = sum(array.nbytes for array in arrays.values())
        manifest = WeightManifest(1, digest, len(arrays), num_bytes, 1.0)
        # The clock is the machine's: both ends are on it.
        ended = time.perf_counter()
        return (manifest, {"checksum_s": ended - begun, "published": ended}), arrays


class StoreReceiver:
    """A rollout worker of such a push, and its engine's process in one."""

    def __init__(self, tuning: dict[str, Any] | None) -> None:
        self._tuning = None
        if tuning is not None:
            self._tuning = Lora.model_validate(tuning)

    def ready(self) -> None:
        """Import what a push needs."""
        import actors.weights.adapter_push
        import actors.weights.sender  # noqa: F401

    def load(
        self,
        publication: tuple[WeightManifest, Stages],
        tensors: Tensors,
    ) -> Stages:
        """Bring the weights into shared memory, unless another has, and map them."""
        from actors.weights.adapter_push import shared_adapter
        from actors.weights.sender import read_weights, shared_weights

        arrived = time.perf_counter()
        manifest, stages = publication
        if self._tuning is None:
            shared = shared_weights(manifest, tensors, LIMIT_S)
        else:
            shared = shared_adapter(manifest, tensors, self._tuning, LIMIT_S)
        with shared as folder:
            num_mapped = len(list(read_weights(folder)))
            ended = time.perf_counter()
        assert num_mapped == len(tensors)
        return {
            "checksum_s": stages["checksum_s"],
            "store_s": arrived - stages["published"],
            "shared_memory_s": ended - arrived,
        }


class Streamer:
    """A member of a push in buckets: rank 0 sends."""

    def __init__(self, num_bytes: int, bucket_bytes: int, rank: int) -> None:
        from common.push.plan import PushPlan, TensorSpec

        self._rank = rank
        self._tensors = random_weights(num_bytes, WHOLE)
        specs = [TensorSpec(name, "bfloat16", WHOLE) for name in self._tensors]
        self._plan: PushPlan = PushPlan(tuple(specs), bucket_bytes, "random")
        self._place: Any = None

    def ready(self) -> None:
        """Answer once the weights are there."""

    def place(self) -> tuple[str, int]:
        """Address and port of the sender's store."""
        from common.machine.address import LOOPBACK
        from common.push.meeting import MeetingPlace

        self._place = MeetingPlace(LOOPBACK)
        return self._place.address, self._place.port

    def raw(self, meeting: Meeting) -> float:
        """Seconds of torch's own broadcast over gloo of all weights, one matrix after another."""
        import torch

        from common.push.meeting import join

        group = join(meeting, self._rank, self._store(meeting), torch.device("cpu"))
        begun = time.perf_counter()
        for tensor in self._tensors.values():
            group.broadcast(tensor.view(torch.uint8)).wait()
        seconds = time.perf_counter() - begun
        group.leave()
        return seconds

    def push(self, meeting: Meeting) -> Stages:
        """One push, from coming together to the last bucket."""
        import torch

        from common.push.meeting import empty_bucket, join

        device = torch.device("cpu")
        begun = time.perf_counter()
        group = join(meeting, self._rank, self._store(meeting), device)
        joined = time.perf_counter()
        try:
            self._stream(group, device, empty_bucket(meeting))
        finally:
            group.leave()
        return {
            "join_s": joined - begun,
            "stream_s": time.perf_counter() - joined,
        }

    def _stream(self, group: Any, device: torch.device, empty: Any) -> None:
        from common.push.wire import receive, send

        if self._rank == 0:
            send(self._plan, device, lambda: group, self._named(), empty)
            return
        num_received = 0
        for _ in receive(self._plan, group):
            num_received += 1
        assert num_received == len(self._plan.tensors)

    def _named(self) -> Iterator[Any]:
        yield from zip(self._plan.tensors, self._tensors.values(), strict=True)

    def _store(self, meeting: Meeting) -> Any:
        if self._rank == 0:
            return self._place.store(meeting)
        return meeting.store()
