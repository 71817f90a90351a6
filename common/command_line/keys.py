"""The keys of a config tree, read off its pydantic classes: for --help, for suggestions, and to find a key's type.

A key is a path of names, written with dots: `learner.optimizer.lr`. Where users choose a name themselves, generic keys
have a placeholder: `NAME` for an entry of a table (`learner.source_losses.NAME.weight`), `N` for an element of a list
(`evaluation.suites.N.kind`).

A *section* is a group of keys, a pydantic class. A key such as `model.tuning` is a union of sections, of which `kind`
chooses one. An *annotation* is the type that a class declares for a key: `int | None`, `tuple[str, ...]`, `A | B`.
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

ENTRY = "NAME"
ELEMENT = "N"
NEAR_SIBLING = 0.6
NEAR_ANYWHERE = 0.5
"""How alike two keys must be, as difflib measures it, for one to be suggested for the other."""

SectionClass: TypeAlias = type[Section]
Names: TypeAlias = tuple[str, ...]
KindPath: TypeAlias = tuple[tuple[str, str], ...]
"""Pairs of a section's path and the kind that it must be of."""


# What an annotation says.


def alternatives(annotation: Any) -> list[Any]:
    """The types that a value may have: the members of a union, without None and without Annotated around them."""
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is Annotated:
        return alternatives(arguments[0])
    # `Union[a, b]` and `a | b` have different origins.
    if origin not in (Union, types.UnionType):
        return [annotation]
    members = []
    for argument in arguments:
        if argument is not type(None):
            # A member may be annotated itself: sections of a union carry the tag of their kind.
            members += alternatives(argument)
    return members


def sections_of(annotation: Any) -> list[SectionClass]:
    """The section classes that a value may have; more than one when it is a union of kinds."""
    sections = []
    for member in alternatives(annotation):
        # issubclass raises for what is no class, such as `tuple[int, ...]`.
        if isinstance(member, type) and issubclass(member, Section):
            sections.append(member)
    return sections


def item_type(annotation: Any) -> Any:
    """The type of an entry of a table or of an element of a list; None when the value is neither."""
    for member in alternatives(annotation):
        arguments = get_args(member)
        # Below a table of any keys there is any value.
        if member is Any:
            return Any
        if get_origin(member) is dict:
            _, value_type = arguments
            return value_type
        # A tuple of fixed length has elements of one type here, too: (0.9, 0.999).
        if is_list(member) and arguments:
            return arguments[0]
    return None


def is_list(annotation: Any) -> bool:
    """Whether a value may be a list. Configs are frozen, so their lists are tuples."""
    members = alternatives(annotation)
    return any(get_origin(member) in (tuple, list) for member in members)


def takes_text(annotation: Any) -> bool:
    """Whether a value may be any text, such as a name or a path."""
    members = alternatives(annotation)
    return str in members or Path in members


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


def field_of(
    annotation: Any,
    name: str,
    kind: Any = None,
) -> FieldInfo | None:
    """The field called `name` in the section of this kind, None when it has no such field.

    When no section is of this kind, it is the field of the first section that has one of this name.
    """
    candidates = sections_of(annotation)
    # The kind may be a mistake or not be set yet, and still the key deserves a type.
    of_kind = [section for section in candidates if kind in kind_names(section)]
    if of_kind:
        candidates = of_kind
    for section in candidates:
        if name in section.model_fields:
            return section.model_fields[name]
    return None


# All keys of a tree.


@dataclass(frozen=True, slots=True)
class Key:
    """One key that holds a value. `kinds` names the sections that must be of certain kinds for the key to exist."""

    path: Names
    type: str
    default: str
    meaning: str
    kinds: KindPath = ()

    @property
    def name(self) -> str:
        """The dotted key."""
        return ".".join(self.path)

    @property
    def section(self) -> str:
        """The dotted name of the section that the key is in."""
        return ".".join(self.path[:-1])


def keys_of(
    section: SectionClass,
    prefix: Names = (),
    kinds: KindPath = (),
) -> Iterator[Key]:
    """All keys of a section, in the order of its fields.

    Args:
        section: the class.
        prefix: the path of the section.
        kinds: the kinds that were chosen on the way to it.
    """
    for name, field in section.model_fields.items():
        path = (*prefix, name)
        annotation = field.annotation
        inner_type = item_type(annotation)
        if sections_of(annotation):
            default = _default_text(field)
            yield from _keys_of_union(annotation, path, kinds, default)
        elif not sections_of(inner_type):
            yield _key_of_value(field, path, kinds)
        elif is_list(annotation):
            # A list of sections can also be set as a whole.
            yield _key_of_value(field, path, kinds)
            yield from _keys_of_union(inner_type, (*path, ELEMENT), kinds)
        else:
            yield from _keys_of_union(inner_type, (*path, ENTRY), kinds)


def _key_of_value(
    field: FieldInfo,
    path: Names,
    kinds: KindPath,
) -> Key:
    return Key(
        path=path,
        type=type_name(field.annotation),
        default=_default_text(field),
        meaning=field.description or "",
        kinds=kinds,
    )


def _keys_of_union(
    annotation: Any,
    path: Names,
    kinds: KindPath,
    default: str = "required",
) -> Iterator[Key]:
    """Keys of one section class, or of several kinds: `kind` once, then the others of each kind."""
    sections = sections_of(annotation)
    if len(sections) == 1:
        yield from keys_of(sections[0], path, kinds)
        return
    kind_path = (*path, "kind")
    kind_type = "|".join(kinds_of(annotation))
    dotted = ".".join(path)
    yield Key(kind_path, kind_type, default, _short_forms(sections, dotted), kinds)
    for section in sections:
        for kind in kind_names(section):
            chosen = (*kinds, (dotted, kind))
            for key in keys_of(section, path, chosen):
                if key.path != kind_path:
                    yield key


def _short_forms(sections: Sequence[SectionClass], dotted: str) -> str:
    """How sections may be written as one value: `--data.prompts PATH is short for kind file`."""
    forms = []
    for section in sections:
        for key in sorted(set(section.bare.values())):
            kind = kind_names(section)[0]
            forms.append(f"--{dotted} {key.upper()} is short for kind {kind}")
    return ", ".join(forms)


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
    # A key without its kinds -> the kinds that have it: several kinds may share a key, which is listed once.
    kinds_of_key: dict[Key, list[str]] = {}
    all_kinds: dict[str, str] = {}
    for key in keys_of(schema):
        if names and not is_below(key.name, names):
            continue
        # The type of `kind` lists the kinds of its section.
        if key.path[-1] == "kind":
            all_kinds[key.section] = key.type
        default = _value_at(job_defaults or {}, key.path)
        if default is not None:
            key = replace(key, default=f"default {_value_text(default)}")
        shared_key = replace(key, kinds=())
        kinds = kinds_of_key.setdefault(shared_key, [])
        if key.kinds:
            _, innermost_kind = key.kinds[-1]
            kinds.append(innermost_kind)
    lines: list[str] = []
    for key, kinds in kinds_of_key.items():
        lines += _help_lines(key, kinds, all_kinds.get(key.section))
    return "\n".join(lines)


def _help_lines(
    key: Key,
    kinds: Sequence[str],
    all_kinds: str | None,
) -> Iterator[str]:
    """The lines of one key.

    Args:
        key: without its kinds.
        kinds: those that have the key, () when it does not depend on a kind.
        all_kinds: every kind of the key's section, as `full|lora`.
    """
    condition = ""
    # What all kinds have needs no condition.
    if kinds and "|".join(kinds) != all_kinds:
        condition = f"kind {', '.join(kinds)}; "
    yield f"  --{key.name} {key.type}  ({condition}{key.default})"
    if key.meaning:
        yield f"        {key.meaning}"


def is_below(key: str, names: Sequence[str]) -> bool:
    """Whether a key is one of these, or lies in one of these sections."""
    # With a dot behind both, `run.direction` is not below `run.dir`.
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def type_name(annotation: Any) -> str:
    """A type in a few words: `int`, `full|lora`, `list of float`, `str|none`."""
    names: list[str] = []
    for member in alternatives(annotation):
        arguments = get_args(member)
        if get_origin(member) is Literal:
            names += map(str, arguments)
        elif is_list(member):
            names.append(f"list of {type_name(arguments[0])}")
        elif get_origin(member) is dict:
            names.append(f"table of {type_name(arguments[1])}")
        elif sections_of(member):
            names += kind_names(member) or ("section",)
        elif get_origin(member) is dict:
            names.append("table")
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
    if value is None or value in ((), {}):
        return "none"
    # TOML writes them in lower case.
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
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


# Suggestions.


def suggestion(
    schema: SectionClass,
    unknown: Sequence[str],
    chosen: Mapping[str, str],
) -> str:
    """The end of an error about an unknown generic key: the kinds that have it, or the nearest valid key.

    Args:
        schema: the root of the tree.
        unknown: the path of the key.
        chosen: section path -> its kind in this config.
    """
    wanted = ".".join(unknown)
    valid_names: set[str] = set()
    # Section path -> kinds of the section with which the key would be valid.
    kinds_with_it: dict[str, list[str]] = {}
    for key in keys_of(schema):
        other_kinds = _kinds_not_chosen(key, chosen)
        if not other_kinds:
            valid_names.update(_names_on_the_way(key))
        elif key.name == wanted:
            for path, kind in other_kinds:
                kinds_with_it.setdefault(path, []).append(kind)
    if kinds_with_it:
        # The outermost section comes first: it must change before any inside of it.
        path = next(iter(kinds_with_it))
        names = ", ".join(kinds_with_it[path])
        return f": {path}.kind is {chosen[path]}; kinds with this key: {names}"
    nearest = _nearest(wanted, sorted(valid_names))
    if nearest is None:
        return "; --help lists the valid ones"
    return f"; did you mean {nearest}?"


def _names_on_the_way(key: Key) -> Iterator[str]:
    """The key and the sections around it, which can be meant, too."""
    for length in range(1, len(key.path) + 1):
        yield ".".join(key.path[:length])


def _kinds_not_chosen(key: Key, chosen: Mapping[str, str]) -> KindPath:
    """The kinds that the key needs where this config has chosen another kind."""
    others = []
    for path, kind in key.kinds:
        if path in chosen and chosen[path] != kind:
            others.append((path, kind))
    return tuple(others)


def _nearest(wanted: str, valid_names: Sequence[str]) -> str | None:
    """The name that was probably meant: what moved inside of its part of the tree, or a like one."""
    parent, _, leaf = wanted.rpartition(".")
    part = wanted.partition(".")[0]
    siblings = []
    same_leaf = []
    for name in valid_names:
        other_parent, _, other_leaf = name.rpartition(".")
        if other_parent == parent:
            siblings.append(name)
        if other_leaf == leaf:
            same_leaf.append(name)
    # A right name in the wrong section, such as `learner.lr`, is the likeliest mistake.
    for name in same_leaf:
        if name.startswith(f"{part}."):
            return name
    like_siblings = difflib.get_close_matches(wanted, siblings, 1, NEAR_SIBLING)
    if like_siblings:
        return like_siblings[0]
    if same_leaf:
        return same_leaf[0]
    like_names = difflib.get_close_matches(wanted, valid_names, 1, NEAR_ANYWHERE)
    if like_names:
        return like_names[0]
    return None
