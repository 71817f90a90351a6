"""No process of vLLM outlives the actor that started it.

vLLM's engine core does not notice that its parent was killed: it keeps its model, and the GPU memory of it, for ever.
Its workers, which share the core's process unless the engine is split, import our code; there a thread waits for the
actor's end.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import suppress
from pathlib import Path

ACTOR = "SIGHTLINE_ACTOR_PID"
"""The process whose end is waited for; vLLM's processes inherit it."""


def adopt() -> None:
    """Mark this process as the actor of the vLLM processes that it starts from now on."""
    os.environ[ACTOR] = str(os.getpid())


def end_with_actor() -> None:
    """End this process, and the core that started it, as soon as the actor has ended; in the actor do nothing."""
    actor = int(os.environ.get(ACTOR, "0"))
    if actor in (0, os.getpid()):
        return
    try:
        descriptor = os.pidfd_open(actor)
    except ProcessLookupError:
        _end(actor)
    except OSError:
        # An old kernel; a supervised run kills what it knows by its number.
        return
    waiting = threading.Thread(
        target=_end_after, args=(descriptor, actor), name="actors-end", daemon=True
    )
    waiting.start()


def _end_after(descriptor: int, actor: int) -> None:
    end = select.poll()
    end.register(descriptor, select.POLLIN)
    end.poll()
    _end(actor)


def _end(actor: int) -> None:
    parent = os.getppid()
    # The core of a split engine; 1 has taken in whoever lost its parent.
    if parent not in (1, actor) and _started_by_vllm(parent):
        with suppress(OSError):
            os.kill(parent, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _started_by_vllm(pid: int) -> bool:
    """Whether this is an engine core, as vLLM names its process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("VLLM")
    except OSError:
        return False
