"""The GPUs of a machine, and whether its driver can run the CUDA wheels that are installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from cluster.health.finding import Finding

MIN_DRIVERS = {12: 525, 13: 580}
"""CUDA -> the first driver for it, by docs.nvidia.com/deploy/cuda-compatibility (minor version compatibility)."""
RUNTIMES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12")
"""The wheels of CUDA's runtime, by which torch's version of CUDA is told without importing it."""
NAME, MEMORY, DRIVER = range(3)


def gpu_lines(nvidia_smi: str | None) -> list[list[str]]:
    """[name, memory, driver] of every GPU in what nvidia-smi printed; empty where it complains."""
    gpus = []
    for line in (nvidia_smi or "").splitlines():
        columns = [column.strip() for column in line.split(",")]
        if len(columns) == 3 and columns[DRIVER][:1].isdigit():
            gpus.append(columns)
    return gpus


def wheels_cuda() -> int | None:
    """The major version of CUDA that the installed wheels are built for; None without them."""
    for name in RUNTIMES:
        try:
            return int(metadata.version(name).partition(".")[0])
        except metadata.PackageNotFoundError:
            continue
    return None


def check_gpus(
    nvidia_smi: str | None,
    cuda: int | None,
) -> Iterator[Finding]:
    """GPUs and driver; no GPU is well, too.

    Args:
        nvidia_smi: what it printed, None without it.
        cuda: what the wheels are built for.
    """
    gpus = gpu_lines(nvidia_smi)
    if nvidia_smi and not gpus and "No devices" not in nvidia_smi:
        complaint = nvidia_smi.splitlines()[0]
        remedy = "load the driver (modprobe nvidia), or give the container the GPUs (--gpus all)"
        yield Finding("GPU", complaint, remedy, is_fatal=True)
        return
    if not gpus:
        yield Finding("GPU", "none (the CPU build of vLLM is used)")
        return
    yield Finding("GPU", _counted(gpus))
    yield check_driver(gpus[0][DRIVER], cuda)


def check_driver(driver: str, cuda: int | None) -> Finding:
    """Whether a driver such as `580.65.06` runs wheels of a CUDA version."""
    if cuda is None:
        return Finding("driver", f"{driver}; no CUDA wheels are installed")
    needed = MIN_DRIVERS.get(cuda)
    if needed is None:
        return Finding(
            "driver", f"{driver} for CUDA {cuda} wheels, which are not known"
        )
    if int(driver.partition(".")[0]) < needed:
        remedy = (
            f"the wheels are built for CUDA {cuda}: install driver {needed} or newer"
        )
        return Finding("driver", driver, remedy, is_fatal=True)
    return Finding("driver", f"{driver}, for CUDA {cuda} wheels {needed} or newer")


def _counted(gpus: list[list[str]]) -> str:
    """`8 x NVIDIA H100 80GB HBM3, 81559 MiB`."""
    counts: dict[str, int] = {}
    for gpu in gpus:
        kind = f"{gpu[NAME]}, {gpu[MEMORY]}"
        counts[kind] = counts.get(kind, 0) + 1
    return "; ".join(f"{count} x {kind}" for kind, count in counts.items())
