"""The heartbeat of one worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from common.protocols import Handle, Pulse

PER_LIMIT = 4
"""Questions within the time that a worker may say nothing."""
LONGEST_INTERVAL_S = 5.0


async def first_fault(
    handle: Handle, limit_s: float, note: Callable[[Pulse], None]
) -> str:
    """Ask a worker for its pulse, again and again; returns what is wrong with it once something is.

    Args:
        limit_s: it hangs if it, or its engine, says nothing for so long.
        note: is told every pulse.
    """
    interval_s = min(limit_s / PER_LIMIT, LONGEST_INTERVAL_S)
    while True:
        fault = await fault_of(handle, limit_s, note)
        if fault:
            return fault
        await asyncio.sleep(interval_s)


async def fault_of(
    handle: Handle, limit_s: float, note: Callable[[Pulse], None]
) -> str:
    """What is wrong with a worker; "" when nothing is."""
    try:
        pulse = await _patient(handle, limit_s)
    except TimeoutError:
        return f"it has said nothing for {limit_s:g} s"
    except Exception as error:
        # Whatever it is: it has no pulse.
        return handle.death(error) or f"it cannot tell its pulse ({error})"
    note(pulse)
    vitals = pulse.vitals
    if vitals.fault:
        return vitals.fault
    if vitals.silent_s > limit_s:
        return f"its engine has said nothing for {limit_s:g} s"
    return ""


async def _patient(handle: Handle, limit_s: float) -> Pulse:
    """A pulse within the limit.

    Asked twice: when this process itself was stopped, the limit has passed for every worker at once, although all have
    answered.
    """
    try:
        return await asyncio.wait_for(handle.pulse(), limit_s)
    except TimeoutError:
        return await asyncio.wait_for(handle.pulse(), limit_s / PER_LIMIT)
