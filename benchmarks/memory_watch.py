"""The most memory that every kind of Ray actor of this machine held while something ran."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from types import TracebackType

import psutil

GIB = 2**30
MIB = 2**20
ROLES = {"RolloutWorker": "rollout", "Learner": "learner", "RewardWorker": "reward"}
"""The class of an actor, which Ray puts into the name of its process -> what it is called here."""
PAUSE_S = 0.5


class MemoryWatch:
    """Looks twice a second, from a thread. A context manager.

    Attributes:
        ram: role -> GiB of the largest actor, with the processes that it started; pages that several of them share
            count in each.
        gpu: role -> GiB of GPU memory of the largest actor; empty where the driver does not say whose memory it is,
            as in most containers.
        devices: GiB in use on every GPU, by all processes.
    """

    def __init__(self) -> None:
        self.ram: dict[str, float] = {}
        self.gpu: dict[str, float] = {}
        self.devices: dict[str, float] = {}
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._has_ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._has_ended.wait(PAUSE_S):
            self.look()

    def look(self) -> None:
        """Raise the figures to what is held now."""
        by_process = _gpu_use("--query-compute-apps=pid,used_memory")
        for actor in psutil.process_iter():
            role = role_of(actor)
            if role is None:
                continue
            ram = 0
            gpu = 0.0
            for process in _family(actor):
                ram += _resident(process)
                gpu += by_process.get(str(process.pid), 0.0)
            _raise_to(self.ram, role, ram / GIB)
            if gpu:
                _raise_to(self.gpu, role, gpu)
        for device, used in _gpu_use("--query-gpu=index,memory.used").items():
            _raise_to(self.devices, device, used)


def role_of(process: psutil.Process) -> str | None:
    """The role of an actor's process; None for any other."""
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return None
    if not title.startswith("ray::"):
        return None
    name = title.removeprefix("ray::").partition(".")[0]
    return ROLES.get(name.strip())


def _family(process: psutil.Process) -> list[psutil.Process]:
    """An actor and all that it started, such as an engine's own process."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return [process]


def _resident(process: psutil.Process) -> int:
    try:
        size: int = process.memory_info().rss
    except psutil.Error:
        # It has ended.
        return 0
    return size


def _gpu_use(query: str) -> dict[str, float]:
    """First column -> GiB, of what nvidia-smi lists; empty without it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    words = [command, query, "--format=csv,noheader,nounits"]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    use: dict[str, float] = {}
    for line in answer.stdout.splitlines():
        name, _, size = line.partition(",")
        if size.strip().isdigit():
            use[name.strip()] = use.get(name.strip(), 0.0) + int(size) * MIB / GIB
    return use


def _raise_to(figures: dict[str, float], name: str, value: float) -> None:
    figures[name] = max(figures.get(name, 0.0), value)


def main() -> None:
    """Print what is held, until Ctrl-C: to look at a run from beside it."""
    with MemoryWatch() as watch:
        while True:
            time.sleep(5)
            print({"ram": watch.ram, "gpu": watch.gpu, "devices": watch.devices})


if __name__ == "__main__":
    main()
