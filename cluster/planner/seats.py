"""What every kind of actor takes: on its device, and in the RAM of its node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cluster.planner.activations import Activations
from cluster.planner.gpu_kinds import DRIVER_BYTES, GpuKind
from cluster.planner.sampling import Sampling
from cluster.planner.training import Trained
from common.config import RunConfig

LONGEST_ROW = ("activations", "working memory")
"""Parts that only the longest row needs."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Actors of one kind.

    Attributes:
        role: learner, rollout or judge/N.
        count: of them.
        gpus: of one; 0 on a CPU.
        parts: part -> bytes on its device: of every GPU, or of RAM.
        host: part -> bytes of RAM beside them.
        limit: bytes of a device that it may take; None when nobody knows.
    """

    role: str
    count: int
    gpus: float
    parts: Mapping[str, float]
    host: Mapping[str, float]
    limit: float | None = field(default=None)

    @property
    def device_bytes(self) -> float:
        """All that is on its device."""
        return sum(self.parts.values())

    @property
    def certain_bytes(self) -> float:
        """The same without what depends on the length of rows."""
        certain = 0.0
        for part, num_bytes in self.parts.items():
            if part not in LONGEST_ROW:
                certain += num_bytes
        return certain

    @property
    def host_bytes(self) -> float:
        """RAM of one actor: on a CPU its device is RAM, too."""
        num_bytes = sum(self.host.values())
        if not self.gpus:
            num_bytes += self.device_bytes
        return num_bytes


def gpu_limit(
    gpus: float,
    kind: GpuKind | None,
) -> float | None:
    """Bytes of a GPU that an actor may take: all of it, or its share of one."""
    if not gpus or kind is None:
        return None
    return kind.memory * min(1.0, gpus)


def taking_turns(
    config: RunConfig,
    engine: Seat,
    rank: Seat,
) -> tuple[Seat, Seat]:
    """An engine and a rank that share GPUs, with the bytes that the other one leaves while it waits.

    An engine that sleeps keeps its CUDA context, and with level 1 its weights in RAM. A rank that waits keeps all but
    what only a step needs.
    """
    if config.cluster.placement != "colocated":
        return engine, rank
    asleep = engine.parts.get("driver", 0.0)
    resting = 0.0
    for part, num_bytes in rank.parts.items():
        if part not in (*LONGEST_ROW, "update"):
            resting += num_bytes
    host = dict(engine.host)
    if engine.gpus and config.cluster.sleep_level == 1:
        host["weights asleep"] = engine.parts["weights"] * engine.gpus
    if engine.limit is not None:
        engine = replace(engine, limit=engine.limit - resting, host=host)
    if rank.limit is not None:
        # Counted once, as the engine's: they are the same GPUs.
        rank = replace(rank, limit=rank.limit - asleep)
    return engine, rank


def learner_parts(
    state: Trained,
    rows: Activations,
    gpus: float,
) -> dict[str, float]:
    """The parts of a rank. With and without activations are not at the same time: the larger one counts."""
    working = rows.working + state.with_activations
    in_backward = rows.kept + working
    more_in_update = max(0.0, state.without_activations - in_backward)
    parts = {
        **state.device,
        "activations": rows.kept,
        "working memory": working,
        "vision cache": rows.vision_cache,
        "update": more_in_update,
    }
    if gpus:
        parts["driver"] = DRIVER_BYTES
    return parts


def engine_parts(
    engine: Sampling,
    gpus: float,
) -> dict[str, float]:
    """The parts of an engine on one of its devices."""
    parts = {
        "weights": engine.weights,
        "KV cache": max(0.0, engine.kv_cache),
        "working memory": engine.working,
    }
    if gpus:
        parts["driver"] = DRIVER_BYTES
    return parts
