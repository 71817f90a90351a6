"""The keys of a config tree, read off its pydantic classes: for --help, for suggestions, and to find a key's type.

A key is a path of names. Where a section has a free part, a generic key names it: `NAME` for an entry of a table
(`learner.source_losses.NAME.weight`), `N` for an element of a list (`evaluation.suites.N.kind`).
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from common.config.section import Section

ENTRY, ELEMENT = "NAME", "N"

SectionClass: TypeAlias = type[Section]
Names: TypeAlias = tuple[str, ...]
KindPath: TypeAlias = tuple[tuple[str, str], ...]
"""Pairs of a section's path and the kind that it must be of."""


# What a type annotation says.


def members(annotation: Any) -> list[Any]:
    """The types that a value may have: a union taken apart, without None and without Annotated."""
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return members(arguments[0])
    if origin not in (Union, types.UnionType):
        return [annotation]
    alternatives = []
    for argument in arguments:
        if argument is not type(None):
            alternatives += members(argument)
    return alternatives


def sections_of(annotation: Any) -> list[SectionClass]:
    """The section classes that a value may have; more than one when it is a union of kinds."""
    classes = [member for member in members(annotation) if isinstance(member, type)]
    return [member for member in classes if issubclass(member, Section)]


def element_of(annotation: Any) -> Any:
    """The type of an entry of a table or of an element of a list; None when the value is neither."""
    for member in members(annotation):
        arguments = get_args(member)
        if get_origin(member) is dict:
            return arguments[1]
        if is_list(member) and arguments:
            return arguments[0]
    return None


def is_list(annotation: Any) -> bool:
    """Whether a value may be a list."""
    origins = [get_origin(member) for member in members(annotation)]
    return tuple in origins or list in origins


def takes_text(annotation: Any) -> bool:
    """Whether a value may be any text: `7` and `true` are names there."""
    alternatives = members(annotation)
    return str in alternatives or Path in alternatives


def kind_names(section: SectionClass) -> Names:
    """The kinds that a section class stands for; () when it has no `kind`."""
    field = section.model_fields.get("kind")
    if field is None or get_origin(field.annotation) is not Literal:
        return ()
    return get_args(field.annotation)


def kinds_of(annotation: Any) -> Names:
    """All kinds of a union of sections."""
    names: list[str] = []
    for section in sections_of(annotation):
        names += kind_names(section)
    return tuple(names)


def field_of(annotation: Any, name: str, kind: Any = None) -> FieldInfo | None:
    """The field of this name in the section of this kind.

    When no section is of this kind, it is the field of the first section that has one of this name.
    """
    sections = sections_of(annotation)
    of_kind = [section for section in sections if kind in kind_names(section)]
    for section in of_kind or sections:
        if name in section.model_fields:
            return section.model_fields[name]
    return None


# All keys of a tree.


@dataclass(frozen=True, slots=True)
class Key:
    """A leaf of the tree. `kinds` names the sections that must be of certain kinds for the key to exist."""

    path: Names
    type: str
    default: str
    meaning: str
    kinds: KindPath = ()

    @property
    def name(self) -> str:
        """The dotted key."""
        return ".".join(self.path)


def keys_of(
    section: SectionClass, prefix: Names = (), kinds: KindPath = ()
) -> Iterator[Key]:
    """All leaf keys of a section, in the order of its fields."""
    for name, field in section.model_fields.items():
        path = (*prefix, name)
        annotation = field.annotation
        element = element_of(annotation)
        if sections_of(element):
            # A list of sections is a key of its own: it can be set whole.
            if is_list(annotation):
                yield _leaf(field, path, kinds)
            free_part = ELEMENT if is_list(annotation) else ENTRY
            inner = (*path, free_part)
            yield from _keys_of_union(element, inner, kinds, "required")
        elif sections_of(annotation):
            yield from _keys_of_union(annotation, path, kinds, _default_text(field))
        else:
            yield _leaf(field, path, kinds)


def _leaf(field: FieldInfo, path: Names, kinds: KindPath) -> Key:
    meaning = field.description or ""
    return Key(path, type_name(field.annotation), _default_text(field), meaning, kinds)


def _keys_of_union(
    annotation: Any, path: Names, kinds: KindPath, default: str
) -> Iterator[Key]:
    """Keys of one section class, or of several kinds: `kind` once, then the others of each kind."""
    sections = sections_of(annotation)
    if len(sections) == 1:
        yield from keys_of(sections[0], path, kinds)
        return
    kind_path = (*path, "kind")
    yield Key(kind_path, "|".join(kinds_of(annotation)), default, "", kinds)
    for section in sections:
        for kind in kind_names(section):
            chosen = (*kinds, (".".join(path), kind))
            for key in keys_of(section, path, chosen):
                if key.path != kind_path:
                    yield key


# Help.


def describe(
    schema: SectionClass,
    names: Sequence[str] = (),
    job_defaults: Mapping[str, Any] | None = None,
) -> str:
    """One or two lines per key for --help: type, default, meaning.

    Args:
        schema: the root of the tree.
        names: the keys or sections to list, () for all.
        job_defaults: values that take the place of the defaults of the classes.
    """
    kinds_by_key: dict[Key, list[str]] = {}
    kinds_of_section: dict[str, str] = {}
    for key in keys_of(schema):
        if names and not is_below(key.name, names):
            continue
        default = _value_at(job_defaults or {}, key.path)
        if default is not None:
            key = replace(key, default=f"default {_value_text(default)}")
        if key.path[-1] == "kind":
            kinds_of_section[key.name.removesuffix(".kind")] = key.type
        # Several kinds may have the same key: it is one entry that lists them.
        entry = replace(key, kinds=())
        kinds = kinds_by_key.setdefault(entry, [])
        kinds += [kind for _, kind in key.kinds[-1:]]
    lines = []
    for key, kinds in kinds_by_key.items():
        section = ".".join(key.path[:-1])
        for_all_kinds = "|".join(kinds) == kinds_of_section.get(section)
        condition = f"kind {', '.join(kinds)}; "
        if not kinds or for_all_kinds:
            condition = ""
        lines.append(f"  --{key.name} {key.type}  ({condition}{key.default})")
        if key.meaning:
            lines.append(f"        {key.meaning}")
    return "\n".join(lines)


def is_below(key: str, names: Sequence[str]) -> bool:
    """Whether a key is one of these, or lies in one of these sections."""
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def type_name(annotation: Any) -> str:
    """A type in a few words: `int`, `full|lora`, `list of float`, `str|none`."""
    names: list[str] = []
    for member in members(annotation):
        arguments = get_args(member)
        if get_origin(member) is Literal:
            names += map(str, arguments)
        elif is_list(member):
            names.append(f"list of {type_name(arguments[0])}")
        elif sections_of(member):
            names += kind_names(member) or ("section",)
        else:
            names.append(getattr(member, "__name__", str(member)))
    if type(None) in get_args(annotation):
        names.append("none")
    return "|".join(names)


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return f"default {_value_text(default)}"


def _value_text(value: Any) -> str:
    """A value as one writes it in an override."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(_value_text, value))
    if isinstance(value, Section):
        return str(getattr(value, "kind", "set"))
    return str(value) or '""'


def _value_at(tree: Mapping[str, Any], path: Names) -> Any:
    """The value of a key in a plain tree, None when it is not there."""
    value: Any = tree
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


# Suggestions.


def suggestion(
    schema: SectionClass, unknown: Sequence[str], chosen: Mapping[str, str]
) -> str:
    """The end of an error about an unknown generic key: the kinds that have it, or the nearest valid key.

    Args:
        schema: the root of the tree.
        unknown: the path of the key.
        chosen: section path -> its kind in this config.
    """
    wanted = ".".join(unknown)
    valid: set[str] = set()
    kinds_with_it: dict[str, list[str]] = {}
    for key in keys_of(schema):
        missing_kinds = _other_kinds(key, chosen)
        if not missing_kinds:
            for length in range(1, len(key.path) + 1):
                valid.add(".".join(key.path[:length]))
        elif key.name == wanted:
            for path, kind in missing_kinds:
                kinds_with_it.setdefault(path, []).append(kind)
    for path, kinds in kinds_with_it.items():
        names = ", ".join(kinds)
        return f": {path}.kind is {chosen[path]}; kinds with this key: {names}"
    nearest = _nearest(wanted, sorted(valid))
    if nearest is None:
        return "; --help lists the valid ones"
    return f"; did you mean {nearest}?"


def _other_kinds(key: Key, chosen: Mapping[str, str]) -> KindPath:
    """The kinds that the key needs and this config does not choose."""
    others = []
    for path, kind in key.kinds:
        if chosen.get(path, kind) != kind:
            others.append((path, kind))
    return tuple(others)


def _nearest(wanted: str, valid: Sequence[str]) -> str | None:
    """The same last name in the same part of the tree, else a like name beside it, else the like anywhere."""
    parent, _, leaf = wanted.rpartition(".")
    part = wanted.partition(".")[0]
    siblings = [name for name in valid if name.rpartition(".")[0] == parent]
    same_leaf = [name for name in valid if name.rpartition(".")[2] == leaf]
    same_part = [name for name in same_leaf if name.startswith(f"{part}.")]
    candidates = (
        same_part
        or difflib.get_close_matches(wanted, siblings, n=1, cutoff=0.6)
        or same_leaf
        or difflib.get_close_matches(wanted, valid, n=1, cutoff=0.5)
    )
    return candidates[0] if candidates else None
