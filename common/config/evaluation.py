"""What a policy is measured by."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from common.config.section import Section, TextOnDisk
from common.config.suites import PreferenceSuite, SuiteConfig


class Evaluation(Section):
    """What measures a policy. Test is read twice: for the start policy and for the picked policy."""

    suites: tuple[SuiteConfig, ...] = Field(
        (),
        description='suites by kind; a bare name such as "shapes" takes the defaults of its kind. '
        "Without any, the last checkpoint becomes the policy",
    )
    select: str | None = Field(
        None,
        description="metric that picks the checkpoint on validation, as SUITE.METRIC or METRIC; none: the mean of the "
        "suites' own. Of equal checkpoints the earlier one is picked",
    )
    bootstrap_samples: int = Field(1000, ge=1)
    samples_shown: int = Field(24, ge=0, description="test images in samples.html")
    pairs: TextOnDisk | None = Field(
        None,
        description="held-out pair set for the grounding gate; none: those of the first suite that has some",
    )
    grounding_pairs: int = Field(
        100, ge=0, description="pairs of the scorecard's grounding gate, 0: none"
    )
    grounding_gain: float = Field(
        0.1,
        ge=0,
        le=1,
        description="what the true picture must add to the gate's accuracy; less is a warning",
    )

    def pair_sets(self) -> list[tuple[str, str]]:
        """(key, path) of every held-out pair set."""
        named: list[tuple[str, str | None]] = [("evaluation.pairs", self.pairs)]
        for index, suite in enumerate(self.suites):
            if isinstance(suite, PreferenceSuite):
                key = f"evaluation.suites.{index}"
                named.append((f"{key}.validation", suite.validation))
                named.append((f"{key}.test", suite.test))
        return [(key, path) for key, path in named if path is not None]

    @field_validator("suites", mode="before")
    @classmethod
    def _expand_bare_names(cls, values: Any) -> Any:
        if not isinstance(values, list | tuple):
            return values
        sections = []
        for value in values:
            section = {"kind": value} if isinstance(value, str) else value
            if isinstance(section, dict) and "kind" not in section:
                raise ValueError(
                    'expected a kind in every suite; add one, such as kind = "shapes"'
                )
            sections.append(section)
        return sections

    @model_validator(mode="after")
    def _names_differ(self) -> Evaluation:
        names = [suite.name for suite in self.suites]
        if len(set(names)) < len(names):
            raise ValueError(
                f"evaluation.suites: expected different names, got {', '.join(names)}; set their name"
            )
        return self
