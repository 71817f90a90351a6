"""The heartbeat of one worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from common.protocols import Handle, Pulse

PER_LIMIT = 4
"""Questions within the time that a worker may say nothing."""
LONGEST_INTERVAL_S = 5.0
TICKS = 10
"""Looks for an answer within that time."""


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
        pulse = await pulse_within(handle, limit_s)
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


async def pulse_within(handle: Handle, limit_s: float) -> Pulse:
    """A pulse, or TimeoutError.

    Time counts in ticks of this event loop: while this process itself stands still, an answer that is there cannot be
    read, and all workers would hang at once.
    """
    asking = asyncio.ensure_future(handle.pulse())
    # Not `wait_for`: in Python 3.11 it loses a cancellation that comes together with the answer, and the watch would go
    # on for ever.
    try:
        for _ in range(TICKS):
            await asyncio.wait([asking], timeout=limit_s / TICKS)
            if asking.done():
                return asking.result()
    finally:
        asking.cancel()
    raise TimeoutError
