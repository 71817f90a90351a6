"""What every actor can be asked beside its own work: where it is, and whether it sees the run's files."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Sight:
    """What an actor sees from where it is.

    Attributes:
        host: name of its machine.
        folder: where it looks for relative paths.
        gpus: numbers of the GPUs that it may use, as CUDA reads them.
        nonce: content of the run's nonce file; None where it cannot be read.
        missing: of the paths asked about.
    """

    host: str
    folder: str
    gpus: str
    nonce: str | None
    missing: tuple[str, ...]


class Seated:
    """Mixed into the class of every worker by its runtime."""

    def survey(self, nonce_file: str, paths: Sequence[str]) -> Sight:
        """Look at the nonce file and for these paths, as this worker would open them."""
        missing = [path for path in paths if not Path(path).exists()]
        return Sight(
            host=socket.gethostname(),
            folder=str(Path.cwd()),
            gpus=os.environ.get(GPUS, ""),
            nonce=_content(nonce_file),
            missing=tuple(missing),
        )


def seated(worker: type) -> type:
    """The class of a worker with `survey`."""
    return type(worker.__name__, (Seated, worker), {"__module__": worker.__module__})


def _content(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None
