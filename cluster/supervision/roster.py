"""`RUN/workers.json`: who runs where, for people and for tests that kill.

    {"controller": {"host", "processes": [{"pid", "name"}]},
     "workers": {"rollout/0": {"host", "log", "number", "is_up", "processes": [{"pid", "name"}, …]}, …}}

The first process of a worker is its own, the others it has started: vLLM's engine core, readers of pictures.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cluster.runtime.processes import family
from cluster.supervision.seat import Seat
from common.paths import replace_file
from common.protocols import Process

ROSTER = "workers.json"


def write_roster(folder: Path, seats: Iterable[Seat]) -> None:
    """Write the file anew; a reader sees the old one or the new one, whole."""
    workers: dict[str, Any] = {}
    for seat in seats:
        pulse = seat.last_pulse
        if pulse is None:
            continue
        workers[seat.name] = {
            "host": pulse.host,
            "log": pulse.log,
            "number": seat.number,
            "is_up": seat.is_up,
            "processes": _plain(pulse.processes),
        }
    controller = {
        "host": socket.gethostname(),
        "processes": _plain(family(os.getpid())[:1]),
    }
    content = {"controller": controller, "workers": workers}
    replace_file(folder / ROSTER, json.dumps(content, indent=1) + "\n")


def _plain(processes: Sequence[Process]) -> list[dict[str, Any]]:
    return [{"pid": process.pid, "name": process.name} for process in processes]
