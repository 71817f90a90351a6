"""A local object store holds the pushes of its run."""

import pytest

from cluster.runtime.object_store import LEAST, MIB, push_bytes_of, store_bytes
from common.checkpoint.files import tensor_shapes
from common.config import Model, RunConfig
from common.config.loop import Weights
from tests.tiny_models import tiny_llava

GIB = 1 << 30


@pytest.mark.parametrize(
    ("push", "num_engines", "free", "size"),
    [
        # A small model: as it always was.
        (10 * MIB, 1, 64 * GIB, LEAST),
        # Two pushes and what travels beside them.
        (2 * GIB, 1, 64 * GIB, 4 * GIB + 256 * MIB),
        # The engines' copy of a push comes first: 8 - 2 = 6, enough.
        (2 * GIB, 4, 8 * GIB, 4 * GIB + 256 * MIB),
        # 6 - 2 = 4: one push fits, two do not.
        (2 * GIB, 4, 6 * GIB, 4 * GIB),
        # Nobody on this machine copies it.
        (2 * GIB, 0, 4 * GIB, 4 * GIB),
    ],
)
def test_the_size_follows_the_push(
    push: float,
    num_engines: int,
    free: float,
    size: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert store_bytes(push, num_engines, free) == size
    assert not caplog.messages


def test_too_little_shared_memory_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert store_bytes(2 * GIB, 2, 4 * GIB) == 2 * GIB
    assert caplog.messages == [
        "shared memory: expected 4352 MiB free in /dev/shm for weight pushes of 2048 MiB to 2 engines, got 4096 MiB; "
        "they go over the disk or fail; enlarge it (docker: --shm-size)"
    ]


def test_a_push_is_the_whole_model() -> None:
    path = tiny_llava()
    by_buckets = RunConfig(model=Model(path=str(path)), mixture={"online_fraction": 1})
    # It passes by the store.
    assert push_bytes_of(by_buckets) == 0
    weights = Weights(transport="object_store")
    config = by_buckets.model_copy(update={"weights": weights})
    numel = 0
    for shape in tensor_shapes(path).values():
        count = 1
        for size in shape:
            count *= size
        numel += count
    assert push_bytes_of(config) == pytest.approx(4 * numel, rel=0.05)
