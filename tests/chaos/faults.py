"""What can happen to a run: to its processes while it goes on, and to its files between two starts."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.chaos.light_workers import SLOW

BALLOON = "balloon"
KINDS = {"engine": "rollout", "judge": "reward", "rank": "learner"}


def roster(run_dir: Path) -> Mapping[str, Any]:
    """`workers.json`, {} where there is none."""
    try:
        content: dict[str, Any] = json.loads((run_dir / "workers.json").read_text())
    except (OSError, ValueError):
        return {}
    return content


def pids_of(run_dir: Path, kind: str) -> list[int]:
    """The processes of living workers of a kind."""
    pids = []
    for name, worker in roster(run_dir).get("workers", {}).items():
        if name.startswith(f"{kind}/") and worker["is_up"]:
            pids.append(worker["processes"][0]["pid"])
    return [pid for pid in pids if is_worker(pid)]


def is_worker(pid: int) -> bool:
    """Whether a process runs and is an actor of Ray: numbers of processes come again."""
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().startswith(b"ray::")
    return False


def signal_one(
    run_dir: Path, kind: str, number: signal.Signals, rng: random.Random
) -> bool:
    """Send a signal to a worker of a kind; False when none lives."""
    pids = pids_of(run_dir, kind)
    if not pids:
        return False
    try:
        os.kill(rng.choice(pids), number)
    except ProcessLookupError:
        return False
    return True


def slow_judges(run_dir: Path) -> bool:
    """Make the judges slow until `heal`."""
    (run_dir.parent / SLOW).touch()
    return True


def fill_disk(run_dir: Path) -> bool:
    """Leave no byte on the disk of the run until `heal`; only on a disk of its own."""
    if not os.path.ismount(run_dir.parent):
        return False
    with (run_dir.parent / BALLOON).open("wb", buffering=0) as balloon:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while balloon.write(bytes(size)):
                    pass
    return True


def heal(run_dir: Path) -> None:
    """End what lasts."""
    for name in (SLOW, BALLOON):
        (run_dir.parent / name).unlink(missing_ok=True)


def tear_journal(run_dir: Path, rng: random.Random) -> bool:
    journal = run_dir / "journal" / "events.jsonl"
    return _tear(journal, b'{"event": "group", "id": "7:torn"', rng)


def tear_metrics(run_dir: Path, rng: random.Random) -> bool:
    return _tear(run_dir / "metrics.jsonl", b'{"step": 99, "loss": 0.1', rng)


def _tear(file: Path, line: bytes, rng: random.Random) -> bool:
    """Leave a part of a line at the end, as a kill in the middle of a write does."""
    if not file.exists():
        return False
    with file.open("ab") as opened:
        opened.write(line[: rng.randint(1, len(line))])
    return True


def damage_checkpoint(run_dir: Path, rng: random.Random) -> bool:
    """Flip a bit of the newest checkpoint, cut a file of it, or take one away; only where another one is left."""
    folders = sorted((run_dir / "checkpoints").glob("step_*"))
    if len(folders) < 2:
        return False
    files = sorted(path for path in folders[-1].rglob("*") if path.is_file())
    path = rng.choice([path for path in files if path.stat().st_size])
    content = bytearray(path.read_bytes())
    match rng.randrange(3):
        case 0:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
        case 1:
            path.write_bytes(content[: len(content) // 2])
        case _:
            path.unlink()
    return True


def leave_half_checkpoint(run_dir: Path, rng: random.Random) -> bool:
    """What a kill leaves that comes while a checkpoint is written."""
    partial = run_dir / "checkpoints" / f".step_{rng.randrange(99):06d}.partial"
    (partial / "learner").mkdir(parents=True, exist_ok=True)
    (partial / "learner" / "weight.json").write_text("1")
    return True


AT_REST: Mapping[str, Callable[[Path, random.Random], bool]] = {
    "torn journal": tear_journal,
    "torn metrics": tear_metrics,
    "damaged checkpoint": damage_checkpoint,
    "half checkpoint": leave_half_checkpoint,
}
"""Done to the files between two starts."""
