"""Where prompts and offline pairs come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from common.config.section import Section, Seed, TextOnDisk, by_kind


class ShapesPrompts(Section):
    """Caption prompts on rendered scenes."""

    kind: Literal["shapes"] = "shapes"
    count: int = Field(2000, ge=1, description="scenes, a prompt each")
    seed: Seed = Field(0, description="of the scenes")


class PromptFile(Section):
    """Prompts from a data set on disk (`prompts.parquet` beside an `images/` folder)."""

    kind: Literal["file"] = "file"
    path: TextOnDisk = Field(description="folder with prompts.parquet and images/")
    rows: int | None = Field(
        None, ge=1, description="read only so many rows from the start; none: all"
    )


class PairFile(Section):
    """Offline pair sets (`pairs.parquet` beside an `images/` folder), as `cluster.generate` writes them."""

    path: TextOnDisk | tuple[TextOnDisk, ...] = Field(
        description="one folder, or several that are read as one set"
    )
    by_prompt: bool = Field(
        False,
        description="shuffle prompts, not pairs, so that the pairs of a prompt follow each other. They are in one "
        "batch when its offline share is a multiple of their number (mixture.kind ratio, or offline only)",
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """All folders: `path` may be one or several."""
        return (self.path,) if isinstance(self.path, str) else self.path


PromptSource = Annotated[
    Annotated[ShapesPrompts, Tag("shapes")] | Annotated[PromptFile, Tag("file")],
    by_kind("shapes"),
]


class Data(Section):
    """Where prompts and offline pairs come from."""

    prompts: PromptSource = ShapesPrompts()
    offline: PairFile | None = None
