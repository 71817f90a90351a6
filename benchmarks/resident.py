"""Resident memory of this process, as the kernel counts it (Linux)."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def resident() -> int:
    """Bytes in RAM now, pages of mapped files among them."""
    return _field("VmRSS")


def anonymous() -> int:
    """Bytes in RAM now that no file has: what a process cannot give back."""
    return _field("RssAnon")


def peak() -> int:
    """The most bytes in RAM since the process began, or since `reset_peak`."""
    return _field("VmHWM")


def reset_peak() -> None:
    """Forget the peak so far."""
    _RESET.write_text(_RESET_PEAK)


def trim() -> None:
    """Free what nobody refers to, and give the allocator's free pages back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _field(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            kibibytes, unit = value.split()
            assert unit == "kB"
            return int(kibibytes) << 10
    raise LookupError(f"no {name} in {_STATUS}")
