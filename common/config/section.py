"""The base of every group of settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from annotated_types import Le, Lt
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    ValidationInfo,
    field_validator,
)

from common.paths import expand_home

MAX_INT = 2**31 - 1
"""A whole number beyond it overflows in some library; a field that may be larger has an upper bound of its own."""
MAX_FLOAT = 1e9
"""As seconds 31 years. A wait that is much longer overflows."""


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys and numbers that are not finite.

    `bare` says how a section may be written as one value: the type of the value -> the key that it sets.
    """

    bare: ClassVar[Mapping[type, str]] = {}

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would take `true` for 1.
        types = _types_of(cls, info)
        is_number = int in types or float in types
        if isinstance(value, bool) and is_number and bool not in types:
            raise ValueError("expected a number")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _number_is_bounded(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name
        assert name is not None, "a validator of a field"
        metadata = cls.model_fields[name].metadata
        if any(isinstance(item, Le | Lt) for item in metadata):
            return value
        for number in value if isinstance(value, tuple) else (value,):
            limit = MAX_FLOAT if isinstance(number, float) else MAX_INT
            if isinstance(number, int | float) and abs(number) > limit:
                raise ValueError(
                    f"expected a number of at most {limit:,.0f} either way"
                )
        return value


def _types_of(section: type[Section], info: ValidationInfo) -> tuple[Any, ...]:
    """The type of the field that is validated, and its members if it is a union."""
    annotation = section.model_fields[str(info.field_name)].annotation
    return (annotation, *get_args(annotation))


def _shared_or_whole(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("expected a share of one GPU or a whole number of GPUs")
    return gpus


def _expanded(value: Any) -> Any:
    """A path as the user means it; what is no text is left to the type's own check."""
    if isinstance(value, Path):
        return Path(expand_home(str(value)))
    return expand_home(value) if isinstance(value, str) else value


PathOnDisk = Annotated[Path, BeforeValidator(_expanded)]
"""A path of the user: never empty, with `~` for home."""
TextOnDisk = Annotated[str, BeforeValidator(_expanded)]
"""The same as text, for keys that also take a name."""
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""Any 64 bits: every random stream hashes them with its name."""
Fraction = Annotated[float, Field(ge=0, lt=1)]
Gpus = Annotated[float, Field(ge=0), AfterValidator(_shared_or_whole)]
"""GPUs of one worker: a share of one, or several whole ones."""


class FrozenTable(dict[str, Any]):
    """A table of a user's own keys, at any depth. It is hashed by its content, as frozen sections are."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


def _frozen(value: dict[str, Any]) -> FrozenTable:
    try:
        # A run's configuration is kept as JSON.
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "expected texts, finite numbers, true, false, lists and tables"
        ) from error
    return FrozenTable(value)


Table = Annotated[dict[str, Any], AfterValidator(_frozen)]
"""Arguments of a library, by its own names. TOML tables and words such as `--key.size.longest_edge 448` reach them."""


def spelled_out(value: Any, *sections: type[Section]) -> Any:
    """A bare value as the section that it stands for: `"a.jsonl"` as `{kind = "file", path = "a.jsonl"}`."""
    for section in sections:
        key = section.bare.get(type(value))
        if key is not None:
            kind = section.model_fields["kind"].default
            return {"kind": kind, key: value}
    return value


def or_bare(*sections: type[Section]) -> BeforeValidator:
    """Makes pydantic take the bare values of these sections."""

    def spell_out(value: Any) -> Any:
        return spelled_out(value, *sections)

    return BeforeValidator(spell_out)


def expand_bare_kinds(values: Any, what: str, example: str) -> Any:
    """In a list of sections by kind, a bare name is the section of that kind with its defaults.

    Raises:
        ValueError: a section has no kind; the message calls the sections `what`.
    """
    if not isinstance(values, list | tuple):
        return values
    sections = []
    for value in values:
        section = {"kind": value} if isinstance(value, str) else value
        if isinstance(section, dict) and "kind" not in section:
            raise ValueError(
                f'expected a kind in every {what}; add one, such as kind = "{example}"'
            )
        sections.append(section)
    return sections


def by_kind(default: str) -> Discriminator:
    """Makes pydantic pick a member of a union of sections by its `kind`.

    Without a `kind` it is the default one, not the first member that fits: so `--model.tuning.r 8`, where tuning is
    `full` by default, is an error about `r` and does not choose `lora`.
    """

    def kind_of(value: Any) -> Any:
        if isinstance(value, dict):
            return value.get("kind", default)
        # None, where the value is no section: pydantic then raises an error about the kind.
        return getattr(value, "kind", None)

    return Discriminator(kind_of)
