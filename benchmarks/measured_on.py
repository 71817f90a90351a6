"""Where a figure was measured: the processor and the libraries."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")


def measured_on(packages: Sequence[str]) -> dict[str, Any]:
    """`processor`, `gpus` where there are some, and `versions` of packages; None for one that is not installed.

    The ratio of two programs depends on the maker of the processor: MKL, for one, is slower on some than on others.
    """
    measured: dict[str, Any] = {"processor": processor()}
    names = gpus()
    if names:
        measured["gpus"] = names
    measured["versions"] = {package: _version(package) for package in packages}
    return measured


def gpus() -> list[str]:
    """Their names, as the driver has them."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines()


def processor() -> str:
    """Maker and model, as Linux names them; elsewhere what Python knows."""
    fields: dict[str, str] = {}
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    known = [fields.get("vendor_id"), fields.get("model name")]
    return " ".join(filter(None, known)) or platform.processor()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
