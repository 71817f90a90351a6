"""Turns pydantic's errors about a config tree into one line: the user's key, what was expected, and what came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from common.command_line.keys import (
    ELEMENT,
    ENTRY,
    field_of,
    is_list,
    item_type,
    kinds_of,
    sections_of,
    suggestion,
)
from common.config.flags import Flag
from common.config.section import Section

UNKNOWN_KEY = "extra_forbidden"
WRONG_KIND = ("union_tag_invalid", "union_tag_not_found")
"""Types of pydantic's errors."""


@dataclass(slots=True)
class _Place:
    """Where in a tree an error is.

    Attributes:
        annotation: the type there; None below an unknown key.
        path: as the user writes it.
        generic: the same with NAME and N for entries and elements.
        kinds: generic path of each union on the way -> the kind that was chosen.
        is_private: the value must not be shown.
    """

    annotation: Any
    path: list[str] = field(default_factory=list)
    generic: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    is_private: bool = False


def explain(
    error: ValidationError,
    schema: type[Section],
    flags: Sequence[Flag],
) -> str:
    """One line about the first problem. `flags` are the command's: one that sets the key is named beside it."""
    problems = error.errors()
    for problem in problems:
        # Before all others: a mistyped key explains why the right one is missing.
        if problem["type"] == UNKNOWN_KEY:
            place = _locate(schema, problem["loc"])
            key = ".".join(place.path)
            # By generic names: a suggestion must fit entries and elements of any name.
            hint = suggestion(schema, place.generic, place.kinds)
            return f"unknown config key {key}{hint}"
    first = problems[0]
    place = _locate(schema, first["loc"])
    return _line(dict(first), place, flags)


def _line(
    problem: Mapping[str, Any],
    place: _Place,
    flags: Sequence[Flag],
) -> str:
    """What is wrong with a known key, or with the tree as a whole."""
    key = ".".join(place.path)
    value = problem["input"]
    message = str(problem["msg"]).removeprefix("Value error, ")
    got = f", got {value!r}"
    # The text of a whole section would fill the screen.
    if isinstance(value, dict | Section) or place.is_private:
        got = ""
    if not key:
        return f"{message}{got}"
    written = _with_flag(key, flags)
    problem_type = problem["type"]
    if problem_type in WRONG_KIND:
        kinds = " or ".join(kinds_of(place.annotation))
        if isinstance(value, dict):
            kind = value.get("kind")
            return f"{written}.kind: expected {kinds}, got {kind!r}"
        return f"{written}: expected a section of kind {kinds}{got}; set {key}.kind"
    if problem_type == "literal_error" and place.path[-1] == "kind":
        # A section of the only kind that there is, so no union.
        return f"{written}: expected {problem['ctx']['expected'].strip(chr(39))}{got}"
    if problem_type == "model_type":
        return f"{written}: expected a section{got}; set keys of it, see --help"
    if problem_type == "missing":
        return f"{written}: expected a value, got nothing; set it"
    return f"{written}: {message}{got}"


def _with_flag(key: str, flags: Sequence[Flag]) -> str:
    """The key, after the flag that the user may have written in its place."""
    for flag in flags:
        if flag.sets(key):
            return f"{flag.name} ({key})"
    return key


def _locate(
    schema: type[Section],
    location: Sequence[int | str],
) -> _Place:
    """Follow pydantic's path down the tree.

    Such a path is no list of keys: after the key of a union it names the member that pydantic took. The member may be a
    kind of section (`model`, `tuning`, `lora`, `r`) or a plain type (`data`, `offline`, `path`, `str`).
    """
    place = _Place(schema)
    kind: str | None = None
    for part in location:
        name = str(part)
        # Once per union: a key may be called like a kind.
        if kind is None and _is_kind(name, place.annotation):
            kind = name
            generic = ".".join(place.generic)
            place.kinds[generic] = kind
        elif _step(place, part, kind):
            kind = None
    for section in sections_of(place.annotation):
        if _has_private_fields(section):
            place.is_private = True
    return place


def _is_kind(name: str, annotation: Any) -> bool:
    """Whether a part of pydantic's path is the kind that it chose of a union."""
    return name in kinds_of(annotation)


def _step(
    place: _Place,
    part: int | str,
    kind: str | None,
) -> bool:
    """Go down one key; False when the part is no key but the name of a plain type in a union, such as `str`."""
    name = str(part)
    annotation = place.annotation
    inner_type = item_type(annotation)
    if sections_of(annotation):
        inner = field_of(annotation, name, kind)
        place.annotation = None
        if inner is not None:
            place.annotation = inner.annotation
            place.is_private |= not inner.repr
        place.generic.append(name)
    elif isinstance(part, int) and is_list(annotation):
        place.annotation = inner_type
        place.generic.append(ELEMENT)
    elif inner_type is not None and not is_list(annotation):
        place.annotation = inner_type
        place.generic.append(ENTRY)
    else:
        return False
    place.path.append(name)
    return True


def _has_private_fields(section: type[Section]) -> bool:
    # A field without repr may hold what must not be shown, such as credentials in an address.
    return any(not inner.repr for inner in section.model_fields.values())
