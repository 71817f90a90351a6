"""Who judges, and how verdicts become pairs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from common.config.model import SHAPES_POLICY
from common.config.section import Section, TextOnDisk, by_kind


class RulesJudge(Section):
    """The shapes world's rule-based judge: what the caption says against what the scene holds."""

    kind: Literal["rules"] = "rules"
    hallucination_cost: float = Field(1.0, ge=0)
    attribute_cost: float = Field(0.5, ge=0)
    miss_cost: float = Field(0.5, ge=0)


class PolicyJudge(Section):
    """A vision-language model, asked yes/no about every object a caption claims. The start policy: a weak judge."""

    kind: Literal["policy"] = "policy"
    path: TextOnDisk = SHAPES_POLICY
    max_length: int = Field(512, ge=16)


JudgeConfig = Annotated[
    Annotated[RulesJudge, Tag("rules")] | Annotated[PolicyJudge, Tag("policy")],
    by_kind("rules"),
]


class Reward(Section):
    """Judging and pairing: best against worst; pairs closer than `min_margin` are ties."""

    judge: JudgeConfig = RulesJudge()
    num_workers: int = Field(1, ge=1)
    min_margin: float = Field(1e-6, ge=0)
    max_retries: int = Field(2, ge=0)
    num_cpus: float = Field(0, ge=0)
