"""The kinds of evaluation suites and their settings: a section each, with a `kind`, in the union `SuiteConfig`.

Every section has a `kind` and a `name`, under which the scorecard keeps what it measured; two suites of one kind need
different names.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from common.config.benchmarks import (
    AmberBenchmark,
    ChairBenchmark,
    GqaBenchmark,
    HallusionBenchmark,
    LlavaBenchmark,
    MmhalBenchmark,
    MmvpBenchmark,
    ObjectHalBenchmark,
    PopeBenchmark,
    TextVqaBenchmark,
)
from common.config.section import Section, TextOnDisk, by_kind


class WorldSuite(Section):
    """What is asked about the scenes of a rendered world."""

    validation_scenes: int = Field(100, ge=0)
    test_scenes: int = Field(300, ge=0)
    questions_per_scene: int = Field(
        2, ge=0, description="per POPE split: one yes and one no"
    )


class ShapesSuite(WorldSuite):
    """Rendered scenes: captions measured by CHAIR and by the judge, yes/no questions measured by POPE."""

    kind: Literal["shapes"] = "shapes"
    name: str = Field("shapes", description="of the suite in the scorecard")


class TabletopSuite(WorldSuite):
    """World 2 (docs/world2.md): captions, yes/no in POPE's splits, colours, places, numbers, and second turns."""

    kind: Literal["tabletop"] = "tabletop"
    name: str = Field("tabletop", description="of the suite in the scorecard")


class PromptsSuite(Section):
    """Any held-out prompts: the judge's score, the win rate against the start policy, length and truncation."""

    kind: Literal["prompts"] = "prompts"
    name: str = Field("prompts", description="of the suite in the scorecard")
    validation: TextOnDisk | None = Field(
        None, description="prompts that pick the checkpoint; none: data.validation"
    )
    test: TextOnDisk | None = Field(
        None, description="prompts that are only reported; none: data.test"
    )
    limit: int = Field(500, ge=1, description="prompts of a split, from its start")


class PreferenceSuite(Section):
    """Held-out preference pairs: how the policy ranks them by log-probs, and the pairs of the grounding gate."""

    kind: Literal["preference"] = "preference"
    name: str = Field("preference", description="of the suite in the scorecard")
    validation: TextOnDisk | None = Field(
        None, description="pair set that picks the checkpoint"
    )
    test: TextOnDisk | None = Field(None, description="pair set that is only reported")
    limit: int = Field(500, ge=1, description="pairs of a split, from its start")


SuiteConfig = Annotated[
    Annotated[ShapesSuite, Tag("shapes")]
    | Annotated[TabletopSuite, Tag("tabletop")]
    | Annotated[PromptsSuite, Tag("prompts")]
    | Annotated[PreferenceSuite, Tag("preference")]
    | Annotated[PopeBenchmark, Tag("pope")]
    | Annotated[ChairBenchmark, Tag("chair")]
    | Annotated[AmberBenchmark, Tag("amber")]
    | Annotated[ObjectHalBenchmark, Tag("object_halbench")]
    | Annotated[MmhalBenchmark, Tag("mmhal")]
    | Annotated[LlavaBenchmark, Tag("llava_bench")]
    | Annotated[HallusionBenchmark, Tag("hallusionbench")]
    | Annotated[MmvpBenchmark, Tag("mmvp")]
    | Annotated[TextVqaBenchmark, Tag("textvqa")]
    | Annotated[GqaBenchmark, Tag("gqa")],
    by_kind("shapes"),
]
"""Every entry of `evaluation.suites` says its kind, so the default of `by_kind` is never used there."""
