"""Waiting for the other members of a push, any of whom may say that it has fallen apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

BROKEN = "broken"
"""The key that a member sets who leaves before the end."""
NOTHING = "nothing"
"""What came of somebody who did not say why."""
SHORTEST_NAP_S = 1e-4
LONGEST_NAP_S = 5e-3
LOOK_S = 0.05
"""Between two looks into the store."""
_DONE = "done"
"""Counts the receivers that have every bucket."""


def wait_until(is_done: Callable[[], bool], store: Any, limit_s: float) -> str:
    """Return "" once it is done; else why it will not be: a member's words, the loss of the store, or `NOTHING`."""
    begun = time.monotonic()
    looked = begun
    nap = SHORTEST_NAP_S
    try:
        while not is_done():
            time.sleep(nap)
            nap = min(1.5 * nap, LONGEST_NAP_S)
            now = time.monotonic()
            if now - looked > LOOK_S:
                looked = now
                reason = told(store)
                if reason:
                    return reason
            if now - begun > limit_s:
                return NOTHING
    except RuntimeError as error:
        # The learner is gone, and its store with it.
        return str(error) or NOTHING
    return ""


def told(store: Any) -> str:
    """Why a member left before the end; "" while none has."""
    if not store.check([BROKEN]):
        return ""
    reason: str = store.get(BROKEN).decode()
    return reason or NOTHING


def say_done(store: Any) -> None:
    """As a receiver: all buckets are here, and are what was sent."""
    store.add(_DONE, 1)


def num_done(store: Any) -> int:
    """How many receivers have said so."""
    number: int = store.add(_DONE, 0)
    return number
