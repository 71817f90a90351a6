"""Where prompts and offline pairs come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from common.config.section import Section, Seed, TextOnDisk, by_kind


class ShapesPrompts(Section):
    """Caption prompts on rendered scenes."""

    kind: Literal["shapes"] = "shapes"
    count: int = Field(2000, ge=1)
    seed: Seed = 0


class PromptFile(Section):
    """Prompts from a data set on disk (`prompts.parquet` beside an `images/` folder)."""

    kind: Literal["file"] = "file"
    path: TextOnDisk
    rows: int | None = Field(
        None, ge=1, description="read so many rows, the first ones; none: all"
    )


class PairFile(Section):
    """Offline pair sets (`pairs.parquet` beside an `images/` folder), as `cluster.generate` writes them."""

    path: TextOnDisk | tuple[TextOnDisk, ...] = Field(
        description="one folder, or several that are read as one set"
    )
    by_prompt: bool = Field(
        False,
        description="epochs shuffle prompts, not pairs: a prompt's pairs come one after the other, in one batch when "
        "its offline share is a multiple of their number (mixture.kind ratio, or offline only)",
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """The folders, also when there is one."""
        return (self.path,) if isinstance(self.path, str) else self.path


PromptSource = Annotated[
    Annotated[ShapesPrompts, Tag("shapes")] | Annotated[PromptFile, Tag("file")],
    by_kind("shapes"),
]


class Data(Section):
    """Where prompts and offline pairs come from. Validation picks the checkpoint, test is only reported."""

    prompts: PromptSource = ShapesPrompts()
    offline: PairFile | None = None
