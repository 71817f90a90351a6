"""The keys of a config tree, read off its pydantic classes: for --help, for suggestions, and to find a key's type.

A key is a path of names. Where a section has a free part, a generic key names it: `NAME` for an entry of a table
(`learner.source_losses.NAME.weight`), `N` for an element of a list (`evaluation.suites.N.kind`).
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from common.section import Section

ENTRY, ELEMENT = "NAME", "N"


def members(annotation: Any) -> list[Any]:
    """The types that a value may have: a union taken apart, without None and without Annotated."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin not in (Union, types.UnionType):
        return [annotation]
    parts = []
    for option in get_args(annotation):
        if option is not type(None):
            parts += members(option)
    return parts


def sections_of(annotation: Any) -> list[type[Section]]:
    """The section classes that a value may have; more than one when it is a union of kinds."""
    return [
        option
        for option in members(annotation)
        if isinstance(option, type) and issubclass(option, Section)
    ]


def element_of(annotation: Any) -> Any:
    """The type of an entry of a table or of an element of a list; None when the value is neither."""
    for option in members(annotation):
        origin, arguments = get_origin(option), get_args(option)
        if origin is dict:
            return arguments[1]
        if is_list(option) and arguments:
            return arguments[0]
    return None


def is_list(annotation: Any) -> bool:
    """Whether a value may be a list."""
    return any(get_origin(option) in (tuple, list) for option in members(annotation))


def kind_names(section: type[Section]) -> tuple[str, ...]:
    """The kinds that a section class stands for; () when it has no `kind`."""
    field = section.model_fields.get("kind")
    if field is None or get_origin(field.annotation) is not Literal:
        return ()
    return get_args(field.annotation)


def kinds_of(annotation: Any) -> tuple[str, ...]:
    """All kinds of a union of sections."""
    names: list[str] = []
    for section in sections_of(annotation):
        names += kind_names(section)
    return tuple(names)


def of_kind(annotation: Any, kind: Any) -> list[type[Section]]:
    """The section classes of this kind, all when no class has it."""
    sections = sections_of(annotation)
    chosen = [section for section in sections if kind in kind_names(section)]
    return chosen or sections


def field_of(annotation: Any, name: str, kind: Any = None) -> FieldInfo | None:
    """The field of this name in the section of this kind (or in the first one that has it)."""
    for section in of_kind(annotation, kind):
        if name in section.model_fields:
            return section.model_fields[name]
    return None


def takes_text(annotation: Any) -> bool:
    """Whether a value may be any text: `7` and `true` are names there."""
    return any(option in (str, Path) for option in members(annotation))


@dataclass(frozen=True, slots=True)
class Key:
    """A leaf of the tree. `kinds` names the sections that must be of certain kinds for the key to exist."""

    path: tuple[str, ...]
    type: str
    default: str
    meaning: str
    kinds: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The dotted key."""
        return ".".join(self.path)


def keys_of(
    section: type[Section],
    prefix: tuple[str, ...] = (),
    kinds: tuple[tuple[str, str], ...] = (),
) -> Iterator[Key]:
    """All leaf keys of a section, in the order of its fields."""
    for name, field in section.model_fields.items():
        yield from _keys_of_field(field, (*prefix, name), kinds)


def _keys_of_field(
    field: FieldInfo, path: tuple[str, ...], kinds: tuple[tuple[str, str], ...]
) -> Iterator[Key]:
    value_type = field.annotation
    element = element_of(value_type)
    has_inner_sections = bool(sections_of(element))
    if not sections_of(value_type) and (not has_inner_sections or is_list(value_type)):
        meaning = field.description or ""
        yield Key(path, type_name(value_type), _default_text(field), meaning, kinds)
    if has_inner_sections:
        path = (*path, ELEMENT if is_list(value_type) else ENTRY)
        value_type = element
    yield from _keys_of_sections(value_type, path, kinds, _default_kind(field))


def _keys_of_sections(
    annotation: Any,
    path: tuple[str, ...],
    kinds: tuple[tuple[str, str], ...],
    default_kind: str,
) -> Iterator[Key]:
    sections = sections_of(annotation)
    if len(sections) == 1:
        yield from keys_of(sections[0], path, kinds)
        return
    if sections:
        names = "|".join(kinds_of(annotation))
        yield Key((*path, "kind"), names, default_kind, "", kinds)
    for section in sections:
        for kind in kind_names(section):
            chosen = (*kinds, (".".join(path), kind))
            for key in keys_of(section, path, chosen):
                if key.path != (*path, "kind"):
                    yield key


def type_name(annotation: Any) -> str:
    """A type in a few words: `int`, `text`, `full|lora`, `list of number`."""
    if annotation is Any:
        return "value"
    names = []
    for option in members(annotation):
        origin, arguments = get_origin(option), get_args(option)
        if origin is Literal:
            names += [str(value) for value in arguments]
        elif origin is dict:
            names.append("table")
        elif origin in (tuple, list):
            names.append(f"list of {type_name(arguments[0])}")
        elif isinstance(option, type) and issubclass(option, Section):
            names.append("|".join(kind_names(option)) or "section")
        else:
            names.append(getattr(option, "__name__", str(option)))
    if type(None) in get_args(annotation):
        names.append("none")
    return "|".join(names)


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return f"default {_value_text(field.get_default(call_default_factory=True))}"


def _value_text(value: Any) -> str:
    """A value as one writes it in an override."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(_value_text(item) for item in value)
    if isinstance(value, Section):
        return str(getattr(value, "kind", "set"))
    return str(value) or '""'


def _default_kind(field: FieldInfo) -> str:
    if element_of(field.annotation) is not None:
        return "required"
    return _default_text(field)


def describe(
    schema: type[Section],
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
    for key in keys_of(schema):
        if names and not any(f"{key.name}.".startswith(f"{name}.") for name in names):
            continue
        default = _value_at(job_defaults or {}, key.path)
        # Several kinds may have the same key: it is one entry that lists them.
        entry = Key(
            key.path,
            key.type,
            key.default if default is None else f"default {_value_text(default)}",
            key.meaning,
        )
        kinds_by_key.setdefault(entry, []).extend(kind for _, kind in key.kinds[-1:])
    lines = []
    for key, kinds in kinds_by_key.items():
        condition = f"kind {', '.join(kinds)}; " if kinds else ""
        lines.append(f"  --{key.name} {key.type}  ({condition}{key.default})")
        if key.meaning:
            lines.append(f"        {key.meaning}")
    return "\n".join(lines)


def _value_at(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The value of a key in a plain tree, None when it is not there."""
    value: Any = tree
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def suggestion(
    section: type[Section], unknown: Sequence[str], chosen: dict[str, str]
) -> str:
    """The end of an error about an unknown generic key: the nearest valid key, or the kind that has this one.

    Args:
        section: the root of the tree.
        unknown: the path of the key.
        chosen: section path -> its kind in this config.
    """
    wanted, leaf = ".".join(unknown), unknown[-1]
    valid: set[str] = set()
    kinds_that_have_it: dict[str, list[str]] = {}
    for key in keys_of(section):
        wrong_kinds = {
            path: kind for path, kind in key.kinds if chosen.get(path, kind) != kind
        }
        if not wrong_kinds:
            valid.update(
                ".".join(key.path[:end]) for end in range(1, len(key.path) + 1)
            )
        elif key.name == wanted:
            for path, kind in wrong_kinds.items():
                kinds_that_have_it.setdefault(path, []).append(kind)
    for path, kinds in kinds_that_have_it.items():
        return (
            f": {path}.kind is {chosen[path]}; kinds with this key: {', '.join(kinds)}"
        )
    parent = ".".join(unknown[:-1])
    siblings = [name for name in valid if name.rpartition(".")[0] == parent]
    same_leaf = sorted(name for name in valid if name.rpartition(".")[2] == leaf)
    in_same_part = [name for name in same_leaf if name.startswith(f"{unknown[0]}.")]
    nearest = (
        in_same_part
        or difflib.get_close_matches(wanted, siblings, n=1, cutoff=0.6)
        or same_leaf
        or difflib.get_close_matches(wanted, sorted(valid), n=1, cutoff=0.5)
    )
    if not nearest:
        return "; --help lists the valid ones"
    return f"; did you mean {nearest[0]}?"
