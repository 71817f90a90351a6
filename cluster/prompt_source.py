"""Where a generating job takes its prompts from: a prompt set on disk, or the shapes world's training captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.datasets import PROMPTS, read_prompts
from common.errors import UserError
from common.images import ImageStore
from common.records import Dropped, Prompt

DEMO_COUNT = 1000


def prompt_spec(directory: Path | None, count: int | None) -> dict[str, Any]:
    """What decides which prompts there are, JSON only (UserError when the folder is no prompt set)."""
    source: dict[str, Any] = {"kind": "shapes", "split": "train"}
    if directory is not None:
        path = directory / PROMPTS
        if not path.is_file():
            raise UserError(
                f"--prompts: expected a folder with {PROMPTS}, got {directory}; check the path"
            )
        source = {
            "kind": "file",
            "bytes": path.stat().st_size,
            "modified": path.stat().st_mtime_ns,
        }
    return {
        "prompts": source,
        "count": count or (DEMO_COUNT if directory is None else None),
    }


def load_prompts(
    directory: Path | None,
    count: int | None,
    seed: int,
    store: ImageStore,
    dropped: list[Dropped],
) -> list[Prompt]:
    """The prompts, of the first `count` rows or scenes, with references; rows that are no prompt go to `dropped`."""
    if directory is not None:
        return read_prompts(directory, dropped, count)
    from cluster.shapes_world import training_prompts

    return training_prompts(count or DEMO_COUNT, seed, store)
