"""Kinds of GPUs by their makers' data sheets, and what of it we expect to get: assumptions, until measured."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

GIB = 2**30

DRIVER_BYTES = 1.5 * GIB
"""CUDA context, communication buffers, gaps between blocks: of a process on a GPU."""
PROCESS_BYTES = 1.5 * GIB
"""RAM of a Python process with torch."""
LEARNER_EFFICIENCY = 0.40
"""Share of the peak that a training step gets."""
PREFILL_EFFICIENCY = 0.50
"""Share of the peak that reading prompts gets."""
DECODE_EFFICIENCY = 0.60
"""Share of the memory bandwidth that sampling gets."""
LINK_EFFICIENCY = 0.70
"""Share of a link's bandwidth that a collective gets."""
PUSH_S_PER_GB = 5.0
"""Gathering, merging, hashing and copying on the CPU: 60-80 s of a 7B push of 14 GB, as measured by part."""
NETWORK_BANDWIDTH = 50e9
"""Bytes a second of a GPU to another node: 400 Gbit/s each."""


@dataclass(frozen=True, slots=True)
class GpuKind:
    """A kind of GPU.

    Attributes:
        name: as `cluster.gpu` has it.
        marks: words in the driver's name of it, all of them.
        memory: bytes that the driver shows.
        flops: peak of bfloat16 products without sparsity, in FLOP/s.
        float32_flops: of float32 products.
        bandwidth: of its memory, bytes a second.
        link: to another GPU of its node, bytes a second in one direction.
    """

    name: str
    marks: tuple[str, ...]
    memory: int
    flops: float
    float32_flops: float
    bandwidth: float
    link: float

    def peak(
        self,
        dtype: str,
    ) -> float:
        """FLOP/s of products in this dtype."""
        return self.flops if dtype == "bfloat16" else self.float32_flops


_KINDS = (
    GpuKind("a100-80", ("A100", "80"), 81_920 << 20, 312e12, 19.5e12, 2.04e12, 300e9),
    GpuKind("h100", ("H100",), 81_559 << 20, 989e12, 67e12, 3.35e12, 450e9),
    GpuKind("h200", ("H200",), 143_771 << 20, 989e12, 67e12, 4.8e12, 450e9),
    GpuKind("l40s", ("L40S",), 46_068 << 20, 362e12, 91.6e12, 0.864e12, 32e9),
)
GPU_KINDS = {kind.name: kind for kind in _KINDS}


def detected_kind() -> GpuKind | None:
    """The kind of this machine's first GPU; None without a GPU, or of a kind that is not in the table."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    answer = subprocess.run(
        [command, "--query-gpu=name", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return kind_named(answer.stdout.partition("\n")[0])


def kind_named(product: str) -> GpuKind | None:
    """The kind that a driver calls `product`, such as "NVIDIA H100 80GB HBM3"."""
    for kind in _KINDS:
        if all(mark in product for mark in kind.marks):
            return kind
    return None
