"""The kinds of judges and their settings: a section each, with a `kind`, in the union `JudgeConfig`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    field_validator,
    model_validator,
)

from common.config.asking import ClaimsJudge, EndpointJudge, VlmJudge
from common.config.eyes import TorchEye
from common.config.model import SHAPES_POLICY
from common.config.section import Section, TextOnDisk

BoxFormat: TypeAlias = Literal["xyxy", "xywh", "cxcywh"]
"""Two corners; corner and size; centre and size."""
BoxScale: TypeAlias = Literal["pixels", "unit", "thousand"]


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


@dataclass(frozen=True, slots=True)
class UserCode:
    """The text of a user's file, as the controller read it. `path` is absolute on the controller's machine."""

    path: str
    text: str


class PythonJudge(Section):
    """A class or function of the user: `{ kind = "python", target = "my_judge:MyJudge" }`.

    `kind = "my_judge:MyJudge"` says the same. Further keys are settings of the user's own: keyword arguments of the
    class, or of the function.
    """

    model_config = ConfigDict(extra="allow")

    kind: Literal["python"] = "python"
    target: str = Field(
        description="module:Name or file.py:Name; may also be written as the kind itself"
    )
    timeout_s: float = Field(
        120.0, gt=0, description="limit of one call; then the judge is asked again"
    )
    trl_text: bool = Field(
        False,
        description="give functions of TRL's signature plain texts, not conversations",
    )

    # It travels with the config to the workers. Not a field: code is neither written to a run's config.json nor read
    # from one, so nobody's run directory brings code along.
    _code: UserCode | None = PrivateAttr(None)

    @property
    def settings(self) -> dict[str, Any]:
        """The user's own keys."""
        return dict(self.model_extra or {})

    @property
    def code(self) -> UserCode | None:
        """The file's text, where the controller has read one (see `with_code`)."""
        return self._code

    def with_code(self, code: UserCode) -> PythonJudge:
        """The same section with the text of the user's file."""
        section = self.model_copy()
        section._code = code
        return section

    @model_validator(mode="before")
    @classmethod
    def _kind_names_the_target(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not _is_target(value.get("kind")):
            return value
        if value.get("target", value["kind"]) != value["kind"]:
            raise ValueError(
                f"expected kind = 'python' beside a target, got {value['kind']!r}"
            )
        return {**value, "kind": "python", "target": value["kind"]}

    @field_validator("target")
    @classmethod
    def _names_an_object(cls, target: str) -> str:
        place, _, name = target.rpartition(":")
        if not place or not name.isidentifier():
            raise ValueError("expected module:Name or file.py:Name")
        return target


class ChairJudge(Section):
    """COCO's annotations: a caption pays for the objects that it makes up or leaves out, as CHAIR counts them."""

    kind: Literal["chair"] = "chair"
    annotations: TextOnDisk = Field(
        description="folder with COCO's instances_*.json and captions_*.json"
    )
    synonyms: TextOnDisk = Field(
        description="CHAIR's synonyms.txt: an object a line, its name first, then other words for it"
    )
    image_id: str = Field(
        "image_id",
        description="column of prompts with COCO's id of the picture; without it the last number in the picture's name",
    )
    hallucination_cost: float = Field(
        1.0, ge=0, description="per mention of an object that is not there"
    )
    miss_cost: float = Field(
        0.5, ge=0, description="per object that is not mentioned; 0 lets silence win"
    )


class ClipJudge(Section):
    """CLIP or SigLIP: how similar a text is to its picture. Long texts are cut, which their notes say."""

    kind: Literal["clip"] = "clip"
    path: TextOnDisk = Field(description="the model's directory")


class RewardModelJudge(Section):
    """A reward model: a scalar head on a language model, or on one that sees pictures."""

    kind: Literal["reward_model"] = "reward_model"
    path: TextOnDisk = Field(description="the model's directory")
    head: Literal["classification", "value"] = Field(
        "classification",
        description="sequence classification, or a value head as TRL saves it (v_head.summary)",
    )
    label: int = Field(0, ge=0, description="of a classifier: the label that scores")
    max_length: int = Field(
        4096, ge=16, description="tokens of prompt and answer; longer ones are dropped"
    )


class AnswerJudge(Section):
    """Holds an answer against the right one in the prompt's row: 1 or 0, or how much two boxes overlap.

    The rules:

        exact     the whole text, character by character
        text      without case, punctuation, articles and spaces, number words as digits
        number    the last number, within `tolerance`
        choice    the letter of an option, or its text
        box       intersection over union of the first box

    All but `exact` and `box` look for a final answer first: \\boxed{…}, <answer>…</answer>, "answer is …".
    """

    kind: Literal["answer"] = "answer"
    rule: Literal["exact", "text", "number", "choice", "box"] = "text"
    column: str = Field(
        "", description="of the prompt's truth; empty for its reference"
    )
    tolerance: float = Field(
        0.0,
        ge=0,
        description="rule number: share of the true number; 0.05 is ChartQA's",
    )
    choices: str = Field(
        "", description="rule choice: column with the options' texts; empty for none"
    )
    threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="rule box: 1 from this IoU on, else 0; none scores the IoU",
    )
    answer_box: BoxFormat = Field("xyxy", description="order of a box in answers")
    truth_box: BoxFormat = Field("xyxy", description="order of a box in the column")
    answer_scale: BoxScale = Field(
        "pixels", description="of answers; unit is 0-1, thousand 0-1000"
    )
    truth_scale: BoxScale = Field("pixels", description="of the column")


def _is_target(kind: Any) -> bool:
    return isinstance(kind, str) and ":" in kind


def _kind_of(value: Any) -> Any:
    """As `by_kind("rules")`, where `module:Name` is a kind too."""
    if not isinstance(value, dict):
        return getattr(value, "kind", None)
    kind = value.get("kind", "rules")
    return "python" if _is_target(kind) else kind


_Single: TypeAlias = (
    Annotated[RulesJudge, Tag("rules")]
    | Annotated[PolicyJudge, Tag("policy")]
    | Annotated[PythonJudge, Tag("python")]
    | Annotated[ChairJudge, Tag("chair")]
    | Annotated[ClipJudge, Tag("clip")]
    | Annotated[RewardModelJudge, Tag("reward_model")]
    | Annotated[AnswerJudge, Tag("answer")]
    | Annotated[VlmJudge, Tag("vlm")]
    | Annotated[EndpointJudge, Tag("endpoint")]
    | Annotated[ClaimsJudge, Tag("claims")]
)
SingleJudge = Annotated[_Single, Discriminator(_kind_of)]
"""Every kind but `ensemble`."""


class Member(Section):
    """One judge of an ensemble."""

    judge: SingleJudge
    weight: float = Field(1.0, ge=0, description="of its score")
    veto_below: float | None = Field(
        None, description="a completion that it scores lower is never chosen; none"
    )


class EnsembleJudge(Section):
    """Several judges as one: the weighted sum of their scores, or the smallest weighted score."""

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[Member, ...] = Field(min_length=1)
    combine: Literal["sum", "minimum"] = "sum"
    veto_cost: float = Field(
        1.0,
        gt=0,
        description="a completion under a veto ends at least so far below all others",
    )


JudgeConfig = Annotated[
    _Single | Annotated[EnsembleJudge, Tag("ensemble")],
    Discriminator(_kind_of),
]


def user_judges(judge: JudgeConfig) -> Iterator[PythonJudge]:
    """The judges that are code of the user, members of an ensemble included."""
    if isinstance(judge, PythonJudge):
        yield judge
    elif isinstance(judge, EnsembleJudge):
        for member in judge.members:
            yield from user_judges(member.judge)
