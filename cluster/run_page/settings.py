"""The config of a run: what differs from the defaults, or from another run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticUndefined, to_jsonable_python

from common.command_line.flat import flattened
from common.config import RunConfig
from common.config.section import Section

ABSENT = "–"


def settings(
    config: Mapping[str, Any],
    other: Mapping[str, Any] | None = None,
    other_name: str = "default",
) -> dict[str, Any]:
    """All keys with their values here and there.

    Args:
        config: content of the run's config.json.
        other: of another run's; None compares with the defaults.

    Returns:
        {"against", "rows": [[key, here, there, differs], …]}.
    """
    here = flattened(config)
    there = flattened(other) if other is not None else default_texts(config)
    rows: list[list[Any]] = []
    for key in dict.fromkeys((*here, *there)):
        ours, theirs = here.get(key, ABSENT), there.get(key, ABSENT)
        rows.append([key, ours, theirs, ours != theirs and key != "run.dir"])
    return {"against": other_name, "rows": rows}


def default_texts(config: Mapping[str, Any]) -> dict[str, str]:
    """Key -> its default, of the kinds of judge, loss, suite … that this config has chosen."""
    # The defaults alone are no run that could begin.
    whole = RunConfig.model_construct()
    try:
        chosen = RunConfig.model_validate(config)
    # Of another version: its keys are not ours.
    except ValueError:
        return flattened(whole.model_dump(mode="json"))
    return flattened(_defaults(chosen, whole))


def _defaults(chosen: Section, default: Section) -> dict[str, Any]:
    """The tree of `chosen` with every value at its default; `default` is what stands there without any choice."""
    is_of_kind = type(chosen) is type(default)
    values: dict[str, Any] = {}
    for name, field in type(chosen).model_fields.items():
        if is_of_kind:
            there = getattr(default, name)
        else:
            there = field.get_default(call_default_factory=True)
        value = getattr(chosen, name)
        if isinstance(value, Section) and isinstance(there, Section):
            values[name] = _defaults(value, there)
        else:
            values[name] = _plain(there)
    if not is_of_kind and hasattr(default, "kind"):
        values["kind"] = default.kind
    return values


def _plain(value: Any) -> Any:
    if value is PydanticUndefined:
        return ABSENT
    return to_jsonable_python(value)
