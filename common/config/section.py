"""The base of every group of settings."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Discriminator


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
