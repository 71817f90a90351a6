"""Presets and command lines as a tree of plain values, before pydantic turns it into a config.

A *tree* is what a TOML preset is read into: nested dicts, with lists and values at their ends. Two things are written
into it, and the later one wins:

    merge   another tree over it, for example a preset over a command's defaults
    write   one *assignment*: a dotted key and the word that the command line gives it

A section is often a union of kinds, such as `full` and `lora`. When a section of one kind lies over one of another
kind, the keys that only the other kind has are dropped: `--model.tuning.kind full` must not fail because the preset
sets `r`, which `full` does not have.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from common.command_line.keys import (
    field_of,
    is_list,
    item_type,
    kind_names,
    sections_of,
    takes_text,
)
from common.config.section import Section, spelled_out
from common.errors import UserError

Tree: TypeAlias = dict[str, Any]
Container: TypeAlias = dict[str, Any] | list[Any]


@dataclass(frozen=True, slots=True)
class Assignment:
    """A dotted key and the word for it. `written` is how the user wrote the key, for error messages."""

    key: str
    word: str
    written: str


# Words.


def parse(word: str, annotation: Any) -> Any:
    """The value that a word means for a key of this type.

    TOML values keep their type (`1e-4`, `true`, `[1, 2]`), lists and objects may be JSON, `none` is None, and a list
    may be written `a,b`. Anything else is text. Whether the value is valid is for pydantic to say.
    """
    try:
        value = _structure(word)
    except ValueError:
        if word.lower() == "none":
            return None
        if is_list(annotation) and not takes_text(annotation):
            return _items(word)
        return word
    # A folder may be called `7` and a model `true`.
    if takes_text(annotation) and not isinstance(value, str | list):
        return word
    return value


def _structure(word: str) -> Any:
    """What a word says as TOML, or as a JSON list or object (ValueError when it is neither)."""
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        # A number is TOML already; JSON's other single values are words to us.
        if not word.startswith(("[", "{")):
            raise
        return json.loads(word)


def _items(word: str) -> list[str]:
    """The parts of `a,b` or `[a,b]`."""
    inside = word.removeprefix("[").removesuffix("]")
    items = []
    for part in inside.split(","):
        item = part.strip()
        if item:
            items.append(item)
    return items


# One tree over another.


def merge(
    low: Tree,
    high: Mapping[str, Any],
    annotation: Any,
) -> None:
    """Put the values of a higher tree over those of a lower one, in place.

    Args:
        low: changed.
        high: its values win.
        annotation: the type of both.
    """
    # First, so that the keys of the new kind are laid over none of the old one's.
    if "kind" in high:
        drop_other_kinds(low, high["kind"], annotation)
    kind = high.get("kind", low.get("kind"))
    for name, value in high.items():
        lower_value = low.get(name)
        field = field_of(annotation, name, kind)
        are_sections = isinstance(lower_value, dict) and isinstance(value, dict)
        # A key without a field is mistyped: it goes in as it is, for validation to report.
        if are_sections and field is not None:
            merge(low[name], value, field.annotation)
        else:
            low[name] = value


def drop_other_kinds(
    section: Tree,
    kind: Any,
    annotation: Any,
    keep: Iterable[str] = (),
) -> None:
    """Drop the keys that only other kinds of the section have, except those in `keep`.

    Mistyped keys belong to no kind: they stay, so that validation reports them. Where the section's former kind takes
    any key, none is mistyped: all go.
    """
    # The same code, named once more: its settings are its own.
    if kind is not None and kind == section.get("target"):
        return
    names_of_kind: set[str] = set()
    names_of_others: set[str] = set()
    for option in sections_of(annotation):
        names = set(option.model_fields)
        if kind in kind_names(option):
            names_of_kind |= names
        else:
            names_of_others |= names
    stale = names_of_others - names_of_kind
    former_kind = section.get("kind")
    if former_kind != kind and _takes_any_key(former_kind, annotation):
        stale = set(section) - names_of_kind
    for name in stale.difference(keep):
        section.pop(name, None)


def _takes_any_key(kind: Any, annotation: Any) -> bool:
    """Whether a section of this kind holds settings of the user's own; a kind may also be the name of their code."""
    has_open_kind = False
    for section in sections_of(annotation):
        is_open = section.model_config.get("extra") == "allow"
        if kind in kind_names(section):
            return is_open
        has_open_kind |= is_open
    return has_open_kind and kind is not None


# One assignment.


def type_at(
    schema: type[Section],
    tree: Tree,
    key: str,
) -> Any:
    """The type of a dotted key, with the kinds that the tree chooses; None when there is no such key."""
    annotation: Any = schema
    value: Any = tree
    for name in key.split("."):
        annotation = _child_type(value, annotation, name)
        value = _child(value, name)
    return annotation


def _child_type(
    value: Any,
    annotation: Any,
    name: str,
) -> Any:
    """The type of what is called `name` in a section, table or list; None when there is no such key."""
    if not sections_of(annotation):
        return item_type(annotation)
    kind = None
    if isinstance(value, dict):
        kind = value.get("kind")
    field = field_of(annotation, name, kind)
    if field is None:
        return None
    return field.annotation


def _child(value: Any, name: str) -> Any:
    """What is called `name` in a section, table or list; None when it is not there."""
    if isinstance(value, dict):
        return value.get(name)
    if isinstance(value, list) and name.isdecimal():
        index = int(name)
        if index < len(value):
            return value[index]
    return None


def write(
    tree: Tree,
    schema: type[Section],
    assignment: Assignment,
    all_keys: Iterable[str],
) -> None:
    """Set one key, and make the sections above it that are not there.

    Args:
        tree: changed in place.
        schema: the class of its root.
        assignment: the key and the word for it.
        all_keys: every key that the command line sets; a new kind does not drop these.

    Raises:
        UserError: the key lies below a value, or is no place in a list.
    """
    *parents, leaf = assignment.key.split(".")
    container: Container = tree
    annotation: Any = schema
    for name in parents:
        container, annotation = _enter(container, annotation, name, assignment)
    leaf_type = _child_type(container, annotation, leaf)
    value = parse(assignment.word, leaf_type)
    # As a section, so that other words can set more of it.
    value = spelled_out(value, *sections_of(leaf_type))
    if isinstance(container, list):
        index = _index(container, leaf, assignment)
        # A slice, because the index after the last element adds one.
        container[index : index + 1] = [value]
        return
    if leaf == "kind":
        # Keys from the command line stay even if they do not fit the kind: the user must hear of that.
        keep = _names_below(parents, all_keys)
        drop_other_kinds(container, value, annotation, keep)
    container[leaf] = value


def _names_below(parents: list[str], keys: Iterable[str]) -> set[str]:
    """The names right below a section that dotted keys mention."""
    depth = len(parents)
    names = set()
    for key in keys:
        path = key.split(".")
        if path[:depth] == parents and len(path) > depth:
            names.add(path[depth])
    return names


def _enter(
    container: Container,
    annotation: Any,
    name: str,
    assignment: Assignment,
) -> tuple[Container, Any]:
    """The section, table or list called `name` in a container, and its type. It is made if it is not there."""
    inner: Any
    if isinstance(container, list):
        inner = _enter_element(container, name, assignment)
    else:
        if name not in container:
            container[name] = _initial_value(annotation, name, container.get("kind"))
        field = field_of(annotation, name, container.get("kind"))
        if field is not None:
            sections = sections_of(field.annotation)
            container[name] = spelled_out(container[name], *sections)
        inner = container[name]
    inner_type = _child_type(container, annotation, name)
    is_value = inner_type is not None and not _has_keys(inner_type)
    if is_value or not isinstance(inner, dict | list):
        raise UserError(
            f"{assignment.written}: expected a section before the last name, got {name}, which is a value"
        )
    return inner, inner_type


def _has_keys(annotation: Any) -> bool:
    """Whether a value of this type has keys below it."""
    return bool(sections_of(annotation)) or item_type(annotation) is not None


def _enter_element(
    elements: list[Any],
    name: str,
    assignment: Assignment,
) -> Any:
    """An element of a list of sections; the number after the last one adds a section."""
    index = _index(elements, name, assignment)
    if index == len(elements):
        elements.append({})
    # A bare name stands for a section of this kind.
    if isinstance(elements[index], str):
        elements[index] = {"kind": elements[index]}
    return elements[index]


def _index(
    elements: list[Any],
    name: str,
    assignment: Assignment,
) -> int:
    count = len(elements)
    if not name.isdecimal() or int(name) > count:
        raise UserError(
            f"{assignment.written}: expected a number from 0 to {count} in the list, got {name!r}; {count} adds one"
        )
    return int(name)


def _initial_value(
    annotation: Any,
    name: str,
    kind: Any,
) -> Container:
    """What an override of a part starts from: a copy of a list's default, {} for a section or table.

    Unlike the fields of a section, the elements of a list have no defaults of their own that pydantic would fill in.
    """
    field = field_of(annotation, name, kind)
    if field is None or not is_list(field.annotation):
        return {}
    elements: list[Any] = []
    if field.is_required():
        return elements
    for element in field.get_default(call_default_factory=True) or ():
        if isinstance(element, Section):
            settings = element.model_dump(exclude_unset=True)
            # A default `kind` counts as unset, and yet it says which section this is.
            settings["kind"] = getattr(element, "kind", None)
            elements.append(settings)
        else:
            elements.append(element)
    return elements
