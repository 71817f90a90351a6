"""How trained weights get from the learner into the engines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config.section import Section


class Weights(Section):
    """The way of a weight push, and its limits."""

    transport: Literal["auto", "adapter", "broadcast", "ipc", "object_store"] = Field(
        "auto",
        description="adapter: of LoRA the adapter alone, which engines run beside the start policy; broadcast: all "
        "weights, merged, in buckets from the learner to all engines at once; ipc: the same over GPUs that both share; "
        "object_store: all weights through Ray, for machines without a common network; auto: adapter for LoRA where "
        "engines can run it, else ipc where GPUs are shared, else broadcast",
    )
    bucket_mib: int = Field(
        32,
        ge=1,
        le=8192,
        description="size of a bucket; two of them are in memory at each end",
    )
    timeout_s: float = Field(
        60.0,
        gt=0,
        description="limit for learner and engines to come together, and for any one bucket",
    )
