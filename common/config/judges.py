"""The kinds of judges and their settings: a section each, with a `kind`, in the union `JudgeConfig`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from common.config.asking import ClaimsJudge, EndpointJudge, VlmJudge
from common.config.eyes import TorchEye
from common.config.model import SHAPES_POLICY
from common.config.section import Section, TextOnDisk, by_kind


class RulesJudge(Section):
    """The shapes world's rule-based judge, which holds what a caption says against what is in the scene."""

    kind: Literal["rules"] = "rules"
    hallucination_cost: float = Field(
        1.0, ge=0, description="per object that is not there"
    )
    attribute_cost: float = Field(
        0.5, ge=0, description="per wrong colour or place of an object"
    )
    miss_cost: float = Field(0.5, ge=0, description="per object that is not mentioned")


class PolicyJudge(Section):
    """A vision-language model that is asked yes or no about every object a caption claims.

    By default it is the start policy, which makes a weak judge.
    """

    kind: Literal["policy"] = "policy"
    path: TextOnDisk = SHAPES_POLICY
    max_length: int = Field(512, ge=16)

    @property
    def eye(self) -> TorchEye:
        """The model, asked in the reward worker's process."""
        return TorchEye(path=self.path, max_length=self.max_length)


JudgeConfig = Annotated[
    Annotated[RulesJudge, Tag("rules")]
    | Annotated[PolicyJudge, Tag("policy")]
    | Annotated[VlmJudge, Tag("vlm")]
    | Annotated[EndpointJudge, Tag("endpoint")]
    | Annotated[ClaimsJudge, Tag("claims")],
    by_kind("rules"),
]
