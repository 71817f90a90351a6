"""Where a generating job takes its prompts from: a prompt set on disk, or the shapes world's training captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.config import PromptFile
from common.config.jobs import GenerateConfig
from common.data.datasets import PROMPTS, read_prompts
from common.data.images import ImageStore
from common.end_marks import without_end_mark, without_end_marks
from common.errors import UserError
from common.records import Dropped, Prompt


def prompt_spec(config: GenerateConfig) -> dict[str, Any]:
    """What decides which prompts there are, JSON only (UserError when the folder is no prompt set)."""
    source = config.data.prompts
    if not isinstance(source, PromptFile):
        shapes = {"kind": "shapes", "split": "train"}
        return {"prompts": shapes, "count": source.count}
    path = Path(source.path) / PROMPTS
    if not path.is_file():
        raise UserError(
            f"--prompts (data.prompts.path): expected a folder with {PROMPTS}, got {source.path}; check the path"
        )
    # Size and time stand for the content, which may be gigabytes.
    stat = path.stat()
    file = {"kind": "file", "bytes": stat.st_size, "modified": stat.st_mtime_ns}
    return {"prompts": file, "count": source.rows}


def load_prompts(
    config: GenerateConfig,
    store: ImageStore,
    dropped: list[Dropped],
    strip: Callable[[str], str] = without_end_mark,
) -> tuple[list[Prompt], int]:
    """The prompts, and how many of their references an end mark was taken off.

    Args:
        dropped: rows that are no prompt are appended.
        strip: takes written-out end marks off a reference.
    """
    source = config.data.prompts
    if isinstance(source, PromptFile):
        prompts = read_prompts(Path(source.path), dropped, source.rows)
        return without_end_marks(prompts, strip)
    from cluster.shapes_world import training_prompts

    return training_prompts(source.count, config.scene_seed, store), 0
