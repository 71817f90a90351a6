"""One rank of the memory test: `python -m tests.learner.memory_worker RANK WORLD MODEL IMAGES OUT`.

A step and a push under ZeRO-3; OUT/memory_RANK.json says in bytes what was held and what the push took on top.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

from common.config.loop import Weights
from common.data.images import ImageStore
from common.push.collective import Collective
from common.push.meeting import Meeting, network_id
from learner.learner import Learner
from tests.learner.helpers import make_pairs, run_config
from tests.learner.rank_processes import agreed_port

BUCKET_BYTES = 1 << 20
MALLINFO = [
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
]


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO]


def used_bytes() -> int:
    """Bytes that the C library has given out and not got back.

    Of all threads: gloo's free what they sent.
    """
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo
    info = mallinfo()
    in_heap, in_mappings = info.uordblks, info.hblkhd
    return int(in_heap + in_mappings)


def push_bytes(trainer: Learner) -> int:
    """The most that a push takes on top of what was held, looked at while each parameter is whole."""
    engine = trainer.models.engine
    gathered = engine.gathered
    before = used_bytes()
    peak = 0

    def watched(*arguments: Any) -> Iterator[tuple[str, Tensor]]:
        nonlocal peak
        for item in gathered(*arguments):
            peak = max(peak, used_bytes() - before)
            yield item

    vars(engine)["gathered"] = watched
    kept = trainer.publish(1)
    peak = max(peak, used_bytes() - before)
    del kept
    return peak


def stream_bytes(trainer: Learner) -> int:
    """The same of a streamed push, looked at whenever a bucket is full."""
    before = used_bytes()
    peak = 0
    broadcast = Collective.broadcast

    def watched(group: Collective, buffer: Tensor) -> Any:
        nonlocal peak
        peak = max(peak, used_bytes() - before)
        return broadcast(group, buffer)

    whole = trainer.models.engine.whole

    @contextmanager
    def watched_whole(parameters: Any) -> Iterator[None]:
        nonlocal peak
        with whole(parameters):
            peak = max(peak, used_bytes() - before)
            yield

    place = trainer.meeting_place([network_id()])
    # Nobody receives: what an engine holds is not the learner's.
    meeting = Meeting(place.address, place.port, "memory", "gloo", 1, 60.0)
    vars(trainer.models.engine)["whole"] = watched_whole
    with patch.object(Collective, "broadcast", watched):
        _, broken = trainer.push(1, meeting)
    assert broken == ""
    return peak


def held_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters on this rank: its shares, and parameters that happen to be whole."""
    total = 0
    for parameter in module.parameters():
        total += parameter.data.nbytes
        # ZeRO-3 keeps this rank's share beside the parameter, which is empty while it is split.
        share = getattr(parameter, "ds_tensor", None)
        if share is not None:
            total += share.nbytes
    return total


def main() -> None:
    rank, world_size = map(int, sys.argv[1:3])
    model, images, out = map(Path, sys.argv[3:])
    port = agreed_port(rank, out / "port")
    config = run_config(
        "deepspeed", model=model, zero_stage=3, num_ranks=world_size, micro_batch=1
    )
    weights = Weights(bucket_mib=BUCKET_BYTES >> 20)
    config = config.model_copy(update={"weights": weights})
    trainer = Learner(config, rank, world_size, "127.0.0.1", port)
    trainer.start()
    trainer.step(0, make_pairs(ImageStore(images), 2))
    copy = trainer.reference.copy
    assert copy is not None
    num_bytes = {
        "policy": held_bytes(trainer.policy),
        "reference": held_bytes(copy),
        "push": push_bytes(trainer),
        "stream": stream_bytes(trainer),
        "policy_after": held_bytes(trainer.policy),
    }
    (out / f"memory_{rank}.json").write_text(json.dumps(num_bytes))
    trainer.close()


if __name__ == "__main__":
    main()
