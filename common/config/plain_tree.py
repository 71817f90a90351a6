"""Writes values into the plain tree that a config is validated from: layers over layers, and words of a command line.

A section of one kind may lie over a section of another kind. Then the keys that only the other kind has are dropped.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from common.config.keys import (
    element_of,
    field_of,
    is_list,
    kind_names,
    sections_of,
    takes_text,
)
from common.config.section import Section
from common.errors import UserError

Tree: TypeAlias = dict[str, Any]
Container: TypeAlias = dict[str, Any] | list[Any]


@dataclass(frozen=True, slots=True)
class Assignment:
    """A word of the command line for a dotted key, and how the user wrote that key."""

    key: str
    word: str
    written: str


def parse(word: str, annotation: Any) -> Any:
    """The value that a word means for a key of this type.

    TOML values keep their type (`1e-4`, `true`, `[1, 2]`), `none` is None, and a list may be written `a,b`. Anything
    else is text.
    """
    try:
        value = tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        if word.lower() == "none":
            return None
        if is_list(annotation) and not takes_text(annotation):
            return _items(word)
        return word
    # A folder or a model may be called 7.
    if takes_text(annotation) and not isinstance(value, str | list):
        return word
    return value


def _items(word: str) -> list[str]:
    """The parts of `a,b` or `[a,b]`."""
    parts = word.removeprefix("[").removesuffix("]").split(",")
    stripped = [part.strip() for part in parts]
    return [part for part in stripped if part]


def merge(low: Tree, high: Mapping[str, Any], annotation: Any) -> None:
    """Put the values of a higher layer over those of a lower one, in place."""
    if "kind" in high:
        drop_other_kinds(low, high["kind"], annotation)
    kind = high.get("kind", low.get("kind"))
    for name, value in high.items():
        below = low.get(name)
        field = field_of(annotation, name, kind)
        if field is None or not isinstance(below, dict) or not isinstance(value, dict):
            low[name] = value
        else:
            merge(below, value, field.annotation)


def drop_other_kinds(
    section: Tree, kind: Any, annotation: Any, keep: Iterable[str] = ()
) -> None:
    """Drop the keys that belong to other kinds of the section alone, except those in `keep`.

    Mistyped keys belong to no kind: they stay, so that validation reports them.
    """
    names_of_kind: set[str] = set()
    other_names: set[str] = set()
    for option in sections_of(annotation):
        names = set(option.model_fields)
        if kind in kind_names(option):
            names_of_kind |= names
        else:
            other_names |= names
    for name in other_names - names_of_kind - set(keep):
        section.pop(name, None)


def type_at(schema: type[Section], tree: Tree, key: str) -> Any:
    """The type of a dotted key, with the kinds that the tree chooses; None when there is no such key."""
    annotation: Any = schema
    container: Any = tree
    for name in key.split("."):
        annotation = _child_type(container, annotation, name)
        container = _child(container, name)
    return annotation


def _child_type(container: Any, annotation: Any, name: str) -> Any:
    """The type of what is called `name` in a section, table or list; None when there is no such key."""
    if sections_of(annotation):
        kind = container.get("kind") if isinstance(container, dict) else None
        field = field_of(annotation, name, kind)
        return None if field is None else field.annotation
    return element_of(annotation)


def _child(container: Any, name: str) -> Any:
    """What is called `name` in a section, table or list; None when it is not there."""
    if isinstance(container, dict):
        return container.get(name)
    if isinstance(container, list) and name.isdecimal() and int(name) < len(container):
        return container[int(name)]
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
    value = parse(assignment.word, _child_type(container, annotation, leaf))
    if isinstance(container, list):
        index = _index(container, leaf, assignment)
        container[index : index + 1] = [value]
        return
    if leaf == "kind":
        keep = _names_below(parents, all_keys)
        drop_other_kinds(container, value, annotation, keep)
    container[leaf] = value


def _names_below(parents: list[str], keys: Iterable[str]) -> set[str]:
    """The names right below a section that dotted keys mention."""
    names = set()
    for key in keys:
        path = key.split(".")
        if path[: len(parents)] == parents:
            names.update(path[len(parents) :][:1])
    return names


def _enter(
    container: Container, annotation: Any, name: str, assignment: Assignment
) -> tuple[Container, Any]:
    """The section, table or list called `name` below a container, made if it is not there, and its type."""
    inner_type = _child_type(container, annotation, name)
    is_leaf = not sections_of(inner_type) and element_of(inner_type) is None
    if isinstance(container, list):
        inner = _enter_element(container, name, assignment)
    else:
        if name not in container:
            container[name] = _default_of(annotation, name, container.get("kind"))
        inner = container[name]
    if (inner_type is not None and is_leaf) or not isinstance(inner, dict | list):
        raise UserError(
            f"{assignment.written}: expected a section before the last name, got {name}, which is a value"
        )
    return inner, inner_type


def _enter_element(elements: list[Any], name: str, assignment: Assignment) -> Any:
    """An element of a list of sections; the number after the last one adds a section."""
    index = _index(elements, name, assignment)
    if index == len(elements):
        elements.append({})
    # A bare name stands for a section of this kind.
    if isinstance(elements[index], str):
        elements[index] = {"kind": elements[index]}
    return elements[index]


def _index(elements: list[Any], name: str, assignment: Assignment) -> int:
    if not name.isdecimal() or int(name) > len(elements):
        count = len(elements)
        raise UserError(
            f"{assignment.written}: expected a number from 0 to {count} in the list, got {name!r}; {count} adds one"
        )
    return int(name)


def _default_of(annotation: Any, name: str, kind: Any) -> Container:
    """What an override starts from: a copy of a list's default, which it may change in one place, else {}."""
    field = field_of(annotation, name, kind)
    if field is None or not is_list(field.annotation) or field.is_required():
        return {}
    elements: list[Any] = []
    for element in field.get_default(call_default_factory=True) or ():
        if isinstance(element, Section):
            settings = element.model_dump(exclude_unset=True)
            settings["kind"] = getattr(element, "kind", None)
            elements.append(settings)
        else:
            elements.append(element)
    return elements
