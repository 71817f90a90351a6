"""Settings of glibc's allocator for training on a CPU: freed pages stay with the process.

Every forward frees and takes the same buffers. By default the allocator returns them to the system, and they come back
page by page, each zeroed by the kernel: a third of a step's time on small models.
"""

from __future__ import annotations

import ctypes

# Names and numbers from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_pages() -> bool:
    """Ask the allocator to keep freed pages; False where the C library has no such settings."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # Large buffers are otherwise mapped one by one, and unmapped when freed.
    large_ones_stay = mallopt(_M_MMAP_MAX, 0) == 1
    heap_stays = mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) == 1
    return bool(large_ones_stay and heap_stays)
