"""What every actor can be asked beside its own work: where it is, whether it sees the run's files, and how it is."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.runtime.processes import family, output_file
from common.command_line.log_lines import start_lines
from common.machine.held_files import HeldFiles
from common.protocols import Pulse, Sight, Vitals

GPUS = "CUDA_VISIBLE_DEVICES"

_held_files = HeldFiles()
"""Of this process, which is one worker's."""


class Seated:
    """Mixed into the class of every worker by its runtime."""

    def survey(self, nonce_file: str, paths: Sequence[str]) -> Sight:
        """Look as this worker would open them."""
        return look(nonce_file, paths)

    def pulse(self) -> Pulse:
        """How this worker is; answered in a thread of its own."""
        vitals = getattr(self, "vitals", Vitals)
        processes = family(os.getpid())
        _held_files.note(process.pid for process in processes)
        return Pulse(socket.gethostname(), output_file(), processes, vitals())


def look(nonce_file: str, paths: Sequence[str]) -> Sight:
    """Look at the nonce file and for these paths from this process."""
    missing = [path for path in paths if not Path(path).exists()]
    return Sight(
        host=socket.gethostname(),
        folder=str(Path.cwd()),
        gpus=os.environ.get(GPUS, ""),
        nonce=_content(nonce_file),
        missing=tuple(missing),
    )


def seated(
    worker: type,
    folder: str,
    role: str = "",
    arrive: Callable[[], None] | None = None,
) -> type:
    """The class of a worker with `survey`, which works in this folder where there is one of that name.

    Relative paths then mean what they mean to the controller. With a role its process writes lines of that role.

    Args:
        arrive: called in the worker's process before all else.
    """

    def start(self: Any, *args: Any) -> None:
        if arrive is not None:
            arrive()
        # Another node may have none; what is missing there is told by `survey`.
        with suppress(OSError):
            os.chdir(folder)
        if role:
            start_lines(role)
        worker.__init__(self, *args)  # type: ignore[misc]

    body = {"__init__": start, "__module__": worker.__module__}
    return type(worker.__name__, (worker, Seated), body)


def _content(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None
