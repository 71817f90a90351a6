"""Where a generating job takes its prompts from: a prompt set on disk, or a rendered world's training prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.config import PromptFile, TabletopPrompts
from common.config.jobs import GenerateConfig
from common.data.images import ImageStore
from common.data.prompt_sources import files_of, load_split
from common.data.records_on_disk import usable
from common.end_marks import without_end_mark, without_end_marks
from common.records import Dropped, Prompt

EVERY_KIND = TabletopPrompts().about


def prompt_spec(config: GenerateConfig) -> dict[str, Any]:
    """What decides which prompts there are, JSON only (UserError when the folder is no prompt set)."""
    source = config.data.prompts
    if not isinstance(source, PromptFile):
        world: dict[str, Any] = {"kind": source.kind, "split": "train"}
        # Sets that were made before there was a choice say nothing of it, and are clean.
        if source.references != "clean":
            world["references"] = source.references
        if isinstance(source, TabletopPrompts) and source.about != EVERY_KIND:
            world["about"] = list(source.about)
        return {"prompts": world, "count": source.count}
    # Size and time stand for the content, which may be gigabytes.
    size = modified = 0
    for path in files_of(Path(source.path), "train"):
        stat = path.stat()
        size += stat.st_size
        modified = max(modified, stat.st_mtime_ns)
    file = {"kind": "file", "bytes": size, "modified": modified}
    spec: dict[str, Any] = {"prompts": file, "count": source.rows}
    for key in ("images", "validation", "test"):
        value = config.data.model_dump(mode="json")[key]
        if value is not None:
            spec[key] = value
    return spec


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
        prompts = load_split(config.data, "train", store, dropped)
        return without_end_marks(usable(prompts, dropped), strip)
    from cluster.worlds import world_prompts

    return world_prompts(source, config.scene_seed, store), 0
