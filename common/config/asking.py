"""How a judge that sees puts its questions, and how it reads the replies."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import Field, field_validator, model_validator

from common.config.eyes import (
    EndpointEye,
    EngineEye,
    Engines,
    EyeConfig,
    Server,
    as_endpoint_eye,
    as_engine_eye,
)
from common.config.section import Section
from common.templates import check_template, template_text

STYLES = ("plain", "critic")
"""Templates that come with us: `reward/judges/templates/`."""

_SHARED = {"question", "reference", "form"}
PLACEHOLDERS = {
    "pairwise": {
        *_SHARED,
        "first",
        "second",
        "first_label",
        "second_label",
        "tie_label",
    },
    "pointwise": {*_SHARED, "answer", "lowest", "highest"},
}
"""What a template of each sort is filled with."""


class Asking(Section):
    """Comparing answers two by two, or grading each alone."""

    mode: Literal["pairwise", "pointwise", "tournament"] = Field(
        "pairwise",
        description="pairwise: every two answers, in both orders; pointwise: a grade for each answer; tournament: only "
        "the matches that find the best and the worst",
    )
    reading: Literal["text", "logprobs"] = Field(
        "text", description="of a verdict: written out, or from its log-probs"
    )
    template: str = Field(
        "plain",
        description="plain, critic (as LLaVA-Critic asks, arXiv 2410.02712), or your own: a Jinja text, or a file",
    )
    labels: tuple[str, str, str] = Field(
        ("A", "B", "tie"), description="first answer, second answer, neither"
    )
    lowest: int = Field(1, description="the worst grade")
    highest: int = Field(5, description="the best grade")
    max_tokens: int = Field(256, ge=1, description="of a written verdict")
    min_readable: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of a group's comparisons that must be readable, else it is dropped",
    )

    @property
    def shape(self) -> Literal["pairwise", "pointwise"]:
        """What one question is about: two answers, or one."""
        return "pointwise" if self.mode == "pointwise" else "pairwise"

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: tuple[str, str, str]) -> tuple[str, str, str]:
        if not all(label.strip() for label in labels):
            raise ValueError("expected three words")
        check_distinct(labels)
        return labels

    @model_validator(mode="after")
    def _grades_rise(self) -> Asking:
        if self.lowest >= self.highest:
            raise ValueError(
                f"lowest must be below highest, got {self.lowest} and {self.highest}"
            )
        needs_digits = self.mode == "pointwise" and self.reading == "logprobs"
        if needs_digits and (self.lowest < 0 or self.highest > 9):
            raise ValueError(
                "reading = logprobs needs grades of one digit, got "
                f"{self.lowest} to {self.highest}; lower highest, or set reading = text"
            )
        return self

    @model_validator(mode="after")
    def _template_is_filled(self) -> Asking:
        if self.template in STYLES:
            return self
        known = PLACEHOLDERS[self.shape]
        needed = known.intersection({"first", "second", "answer"})
        try:
            check_template(template_text(self.template), needed, known)
        except ValueError as error:
            raise ValueError(
                f"template: {error}, for mode = {self.mode}, got {self.template[:60]!r}"
            ) from error
        return self


def check_distinct(options: tuple[str, ...]) -> None:
    """Refuse (ValueError) options of which one begins with another: their first tokens would not tell them apart."""
    for one, other in itertools.permutations(options, 2):
        if other.casefold().startswith(one.casefold()):
            raise ValueError(
                f"expected words of which none begins with another, got {one!r} and {other!r}"
            )


class VlmJudge(Asking, Engines):
    """A vision-language model in vLLM engines that compares or grades answers, picture before its eyes."""

    kind: Literal["vlm"] = "vlm"

    @property
    def eye(self) -> EngineEye:
        """The engines."""
        return as_engine_eye(self)


class EndpointJudge(Asking, Server):
    """The same behind a server that speaks OpenAI's protocol."""

    kind: Literal["endpoint"] = "endpoint"

    @property
    def eye(self) -> EndpointEye:
        """The server."""
        return as_endpoint_eye(self)


class ClaimsJudge(Section):
    """Asks yes or no about every claim of an answer (RLAIF-V, arXiv 2405.17220); the score is minus the denials."""

    kind: Literal["claims"] = "claims"
    eye: EyeConfig
    split: Literal["sentences", "eye"] = Field(
        "sentences",
        description="claims are the answer's sentences, or what the eye takes them to be",
    )
    split_template: str = Field(
        "plain", description="plain, or your own, with {{ answer }}: one claim a line"
    )
    template: str = Field("plain", description="plain, or your own, with {{ claim }}")
    reading: Literal["text", "logprobs"] = "logprobs"
    yes: str = Field("Yes", min_length=1)
    no: str = Field("No", min_length=1)
    max_tokens: int = Field(512, ge=1, description="of a written reply")

    @model_validator(mode="after")
    def _answers_differ(self) -> ClaimsJudge:
        check_distinct((self.yes, self.no))
        return self

    @model_validator(mode="after")
    def _templates_are_filled(self) -> ClaimsJudge:
        placeholders = {"template": "claim", "split_template": "answer"}
        for key, needed in placeholders.items():
            value = getattr(self, key)
            if value == "plain":
                continue
            known = {needed, "question", "yes", "no"}
            try:
                check_template(template_text(value), {needed}, known)
            except ValueError as error:
                raise ValueError(f"{key}: {error}, got {value[:60]!r}") from error
        return self
