"""Where a figure was measured: the processor and the libraries."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")


def measured_on(packages: Sequence[str]) -> dict[str, Any]:
    """`processor`, and `versions` of these packages; None for one that is not installed.

    The ratio of two programs depends on the maker of the processor: MKL, for one, is slower on some than on others.
    """
    return {
        "processor": processor(),
        "versions": {package: _version(package) for package in packages},
    }


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
