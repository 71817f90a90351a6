"""Where prompts and offline pairs come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias, get_args

from pydantic import Field, Tag, field_validator, model_validator

from common.config.section import Section, Seed, TextOnDisk, by_kind, or_bare

References: TypeAlias = Literal["clean", "sft"]
"""Which answers the prompts of a rendered world carry: true ones, or those of its policy's own training text."""


About: TypeAlias = Literal["caption", "yes_no", "colour", "place", "number"]
"""What a question of world 2 is about."""


class WorldPrompts(Section):
    """Prompts about the scenes of a rendered world."""

    count: int = Field(2000, ge=1, description="scenes, a prompt each")
    seed: Seed = Field(0, description="of the scenes")


class ShapesPrompts(WorldPrompts):
    """Caption prompts on rendered scenes."""

    kind: Literal["shapes"] = "shapes"
    references: References = Field(
        "clean",
        description="clean: true captions, better than the text that the policy was trained on; sft: captions "
        "as that text has them, some with an object that is not there",
    )


class TabletopPrompts(WorldPrompts):
    """Conversations about the scenes of world 2, drawn as the training text of its policy was (docs/world2.md)."""

    kind: Literal["tabletop"] = "tabletop"
    references: References = Field(
        "sft",
        description="sft: answers as the policy's own training text has them; clean: true ones, which no method of "
        "a fair table reads",
    )
    about: tuple[About, ...] = Field(
        get_args(About),
        min_length=1,
        description="what the question that is to be answered may be about; other scenes are passed over",
    )


class PromptFile(Section):
    """Prompts from files on disk: JSON lines, parquet, a `save_to_disk` folder, an image folder, a set of ours.

    A bare path stands for it.
    """

    bare: ClassVar[Mapping[type, str]] = {str: "path"}

    kind: Literal["file"] = "file"
    path: TextOnDisk = Field(
        description="a .jsonl, .json, .csv or .parquet file, or a folder of such files, of images with metadata.jsonl, "
        "or of a set of ours (prompts.parquet)"
    )
    rows: int | None = Field(
        None, ge=1, description="read only so many rows from the start; none: all"
    )


class HeldOut(Section):
    """Prompts that are taken out of `data.prompts`. A bare number stands for it.

    All prompts about a picture go to the same side. Which pictures are held out depends on them and on `seed` alone,
    not on the order of the rows.
    """

    bare: ClassVar[Mapping[type, str]] = {int: "size", float: "size"}

    kind: Literal["held_out"] = "held_out"
    size: int | float = Field(
        description="how many prompts, such as 200, or which share of them, such as 0.1"
    )
    seed: Seed = Field(0, description="another one holds out other pictures")

    @field_validator("size")
    @classmethod
    def _count_or_share(cls, size: int | float) -> int | float:
        is_share = isinstance(size, float) and 0 < size < 1
        is_count = isinstance(size, int) and size >= 1
        if not is_share and not is_count:
            raise ValueError(
                "expected a whole number of prompts from 1, or a share between 0 and 1"
            )
        return size

    def count_of(self, num_prompts: int) -> int:
        """How many of so many prompts are held out: a share is rounded, and is at least one prompt."""
        if isinstance(self.size, int):
            return self.size
        return max(1, round(self.size * num_prompts))


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
    Annotated[ShapesPrompts, Tag("shapes")]
    | Annotated[TabletopPrompts, Tag("tabletop")]
    | Annotated[PromptFile, Tag("file")],
    by_kind("shapes"),
    or_bare(PromptFile),
]
HeldOutSource = Annotated[
    Annotated[PromptFile, Tag("file")] | Annotated[HeldOut, Tag("held_out")],
    by_kind("file"),
    or_bare(PromptFile, HeldOut),
]


class Data(Section):
    """Where prompts and offline pairs come from."""

    prompts: PromptSource = ShapesPrompts()
    validation: HeldOutSource | None = Field(
        None, description="prompts that pick the checkpoint; nobody trains on them"
    )
    test: HeldOutSource | None = Field(
        None, description="prompts of the scorecard; nobody trains on them"
    )
    images: TextOnDisk | None = Field(
        None,
        description="folder that image paths of prompts are below; none: that of the file",
    )
    offline: PairFile | None = None

    @model_validator(mode="after")
    def _held_out_of_a_file(self) -> Data:
        for name, source in (("validation", self.validation), ("test", self.test)):
            is_rendered = not isinstance(self.prompts, PromptFile)
            if isinstance(source, HeldOut) and is_rendered:
                raise ValueError(
                    f"data.{name} = {source.size} needs data.prompts of a path, got kind {self.prompts.kind}, whose "
                    f"suite has scenes of its own; give data.{name} a path, or leave it out"
                )
        return self
