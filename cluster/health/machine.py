"""Checks of one machine: interpreter, packages, cores, memory, disk, files, ports."""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster.health.facts import BUILDS, PACKAGES, Facts, free_bytes
from cluster.health.finding import GIB, Finding, gib
from cluster.health.gpus import gpu_lines

MIN_DISK = 10 * GIB
MIN_SHARED_MEMORY = 1 * GIB
MIN_MEMORY = 6 * GIB
MIN_OPEN_FILES = 65_536
RAY_PORTS = {
    6379: "Ray head (GCS)",
    8265: "Ray dashboard, where `ray job submit` connects",
}


def check_python() -> Finding:
    """Whether the interpreter is one that the locked packages support."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding("Python", version)
    remedy = "use Python 3.11 or 3.12: make PYTHON=python3.11 setup"
    return Finding("Python", version, remedy, is_fatal=True)


def check_packages(facts: Facts) -> Iterator[Finding]:
    """Whether the needed packages are installed, and a vLLM build that fits the machine."""
    installed = facts.versions
    for name in PACKAGES:
        if name in installed:
            yield Finding(name, installed[name])
        else:
            yield Finding(name, "missing", "run `make setup`", is_fatal=True)
    builds = []
    for name in BUILDS:
        if name in installed:
            builds.append(f"{name} {installed[name]}")
    if not builds:
        yield Finding("vllm", "missing", "run `make setup`", is_fatal=True)
    elif gpu_lines(facts.nvidia_smi) and "vllm" not in installed:
        remedy = (
            "a GPU is here but this is the CPU build: delete .venv and run `make setup`"
        )
        yield Finding("vllm", builds[0], remedy)
    else:
        yield Finding("vllm", ", ".join(builds))


def check_machine(facts: Facts) -> Iterator[Finding]:
    """Cores, memory, and how many files a process may open."""
    remedy = ""
    if facts.cores < 2:
        remedy = "give it 2: one for the engine, one for the learner"
    yield Finding("CPU cores", str(facts.cores), remedy)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    remedy = ""
    if memory < MIN_MEMORY:
        remedy = f"the demo needs {gib(MIN_MEMORY)}"
    yield Finding("memory", gib(memory), remedy)
    yield check_open_files(facts.open_files)


def check_open_files(limit: int) -> Finding:
    """Whether Ray, which opens a socket for every worker it talks to, may open enough files."""
    if limit < 0:
        return Finding("open files", "no limit")
    remedy = ""
    if limit < MIN_OPEN_FILES:
        remedy = f"on a cluster run `ulimit -n {MIN_OPEN_FILES}` before `ray start`"
    return Finding("open files", f"{limit:,} for each process", remedy)


def check_shared_memory(
    free: int | None,
    needed: float,
    what: str,
    is_fatal: bool,
) -> Finding:
    """Whether /dev/shm has room for what crosses it.

    Args:
        free: bytes; None without a /dev/shm.
        needed: bytes.
        what: needs them.
        is_fatal: whether it surely does.
    """
    name = "shared memory"
    state = "no /dev/shm" if free is None else f"{gib(free)} free"
    if free is not None and free >= needed:
        return Finding(name, f"{state}, {what} needs {gib(needed)}")
    size = math.ceil(needed / GIB)
    remedy = (
        f"{what} needs {gib(needed)}: docker run --shm-size={size}g; on Kubernetes an emptyDir with "
        f"medium: Memory and sizeLimit: {size}Gi at /dev/shm"
    )
    return Finding(name, state, remedy, is_fatal)


def check_disk(folder: Path, needed: float, what: str = "") -> Finding:
    """Whether the file system of a folder has this many free bytes."""
    free = free_bytes(folder)
    assert free is not None, "only /dev/shm has none"
    remedy = ""
    if free < needed:
        remedy = f"free at least {gib(needed)}{what}"
    return Finding(f"disk {folder}", f"{gib(free)} free", remedy)


def check_ports() -> Iterator[Finding]:
    """Whether Ray's ports are free. A port in use is no problem: it may be a Ray cluster to join."""
    for port, use in RAY_PORTS.items():
        with socket.socket() as probe:
            probe.settimeout(0.2)
            is_taken = probe.connect_ex(("127.0.0.1", port)) == 0
        state = "in use" if is_taken else "free"
        yield Finding(f"port {port}", f"{state} · {use}")
