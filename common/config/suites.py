"""The kinds of evaluation suites and their settings: a section each, with a `kind`, in `SuiteConfig`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from common.config.section import Section


class ShapesSuite(Section):
    """Rendered scenes: captions measured by CHAIR and by the judge, yes/no questions measured by POPE."""

    kind: Literal["shapes"] = "shapes"
    name: str = Field("shapes", description="of the suite in the scorecard")
    validation_scenes: int = Field(100, ge=0)
    test_scenes: int = Field(300, ge=0)
    questions_per_scene: int = Field(
        2, ge=0, description="per POPE split: one yes and one no"
    )


SuiteConfig: TypeAlias = ShapesSuite
"""One kind so far. With a second it becomes a union by kind, as `PromptSource` is in `data.py`."""
