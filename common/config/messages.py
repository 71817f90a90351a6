"""Turns pydantic's errors about a config tree into one line: the user's key, what was expected, and what came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from common.config.flags import Flag
from common.config.keys import (
    ELEMENT,
    ENTRY,
    element_of,
    field_of,
    is_list,
    kinds_of,
    sections_of,
    suggestion,
)
from common.config.section import Section


@dataclass(slots=True)
class _Place:
    """Where in a tree an error is.

    `path` is as the user writes it, `generic` has NAME and N for entries and elements. `kinds` maps the generic path of
    each union on the way to the kind that was chosen. `is_private` says that the value must not be shown.
    """

    annotation: Any
    path: list[str] = field(default_factory=list)
    generic: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    is_private: bool = False


def explain(
    error: ValidationError, schema: type[Section], flags: Sequence[Flag]
) -> str:
    """One line about the first problem. `flags` are the command's: one that sets the key is named beside it."""
    problems = error.errors()
    # A mistyped key explains why the right one is missing.
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = (unknown or problems)[0]
    place = _locate(schema, first["loc"])
    if unknown:
        hint = suggestion(schema, place.generic, place.kinds)
        return f"unknown config key {'.'.join(place.path)}{hint}"
    return _line(dict(first), place, flags)


def _line(problem: Mapping[str, Any], place: _Place, flags: Sequence[Flag]) -> str:
    key = ".".join(place.path)
    problem_type, value = problem["type"], problem["input"]
    message = str(problem["msg"]).removeprefix("Value error, ")
    got = f", got {value!r}"
    if isinstance(value, dict | Section) or place.is_private:
        got = ""
    if not key:
        return f"{message}{got}"
    written = _with_flag(key, flags)
    if problem_type in ("union_tag_invalid", "union_tag_not_found"):
        kinds = " or ".join(kinds_of(place.annotation))
        if isinstance(value, dict):
            return f"{written}.kind: expected {kinds}, got {value.get('kind')!r}"
        return f"{written}: expected a section of kind {kinds}{got}; set {key}.kind"
    if problem_type == "model_type":
        return f"{written}: expected a section{got}; set keys of it, see --help"
    if problem_type == "missing":
        return f"{written}: expected a value, got nothing; set it"
    return f"{written}: {message}{got}"


def _with_flag(key: str, flags: Sequence[Flag]) -> str:
    for flag in flags:
        if flag.sets(key):
            return f"{flag.name} ({key})"
    return key


def _locate(schema: type[Section], location: Sequence[int | str]) -> _Place:
    """Follow pydantic's path, which names the chosen member of a union as well as the keys."""
    place = _Place(schema)
    kind: str | None = None
    for part in location:
        name = str(part)
        if _is_kind(name, place.annotation) and kind is None:
            kind = name
            place.kinds[".".join(place.generic)] = kind
        elif _step(place, part, kind):
            kind = None
    for section in sections_of(place.annotation):
        place.is_private |= _has_private_fields(section)
    return place


def _is_kind(name: str, annotation: Any) -> bool:
    """Whether a part of pydantic's path is the kind that it chose of a union."""
    return name in kinds_of(annotation)


def _step(place: _Place, part: int | str, kind: str | None) -> bool:
    """Go down one key; False when the part is no key but the name of a plain type in a union, such as `str`."""
    name = str(part)
    annotation = place.annotation
    if sections_of(annotation):
        inner = field_of(annotation, name, kind)
        place.annotation = None if inner is None else inner.annotation
        place.is_private |= inner is not None and not inner.repr
        place.generic.append(name)
    elif isinstance(part, int) and is_list(annotation):
        place.annotation = element_of(annotation)
        place.generic.append(ELEMENT)
    elif element_of(annotation) is not None and not is_list(annotation):
        place.annotation = element_of(annotation)
        place.generic.append(ENTRY)
    else:
        return False
    place.path.append(name)
    return True


def _has_private_fields(section: type[Section]) -> bool:
    # A field without repr may hold what must not be shown, such as credentials in an address.
    return any(not inner.repr for inner in section.model_fields.values())
