"""The base of every group of settings."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Discriminator


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def by_kind(default: str) -> Discriminator:
    """Pick a member of a union of sections by its `kind`, so that `--model.tuning.r 8` alone is an error about r."""

    def kind_of(value: Any) -> Any:
        if isinstance(value, dict):
            return value.get("kind", default)
        # None for what is no section: an error that names the valid kinds.
        return getattr(value, "kind", None)

    return Discriminator(kind_of)
