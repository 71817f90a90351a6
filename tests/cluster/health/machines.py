"""Machines that are not here: facts with canned outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cluster.health.facts import PACKAGES, Facts

H100 = "NVIDIA H100 80GB HBM3, 81559 MiB, 580.82.07"
NODE = Facts(
    host="a",
    python="3.11.7",
    executable="/shared/.venv/bin/python",
    versions={**dict.fromkeys(PACKAGES, "1.0"), "vllm": "0.32.0"},
    code="c0de",
    failed_imports={},
    nvidia_smi="\n".join([H100] * 8),
    open_files=1_048_576,
    cores=96,
    shared_memory=200 << 30,
    interfaces=["eth0"],
    infiniband={"mlx5_0": "ACTIVE"},
    present={"/models/m": True, "/runs/r/.doctor-1": True},
)


def machine(**changes: Any) -> Facts:
    """A sound node with eight H100, changed."""
    return replace(NODE, **changes)
