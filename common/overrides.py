"""From a TOML preset, short flags and `--section.key value` words to a validated config tree.

    a command's own defaults ─▶ preset ─▶ flags and overrides ─▶ validation     each later one wins

Every mistake is one line that names the key as the user wrote it.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from common.config import RunConfig
from common.config_keys import (
    ELEMENT,
    ENTRY,
    describe,
    element_of,
    field_of,
    is_list,
    kind_names,
    kinds_of,
    sections_of,
    suggestion,
    takes_text,
)
from common.errors import UserError
from common.flags import Flag
from common.section import Section

Config = TypeVar("Config", bound=RunConfig)


def load_config(preset: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a preset of a run and apply overrides such as `["--learner.num_steps", "5"]` (UserError as `load`)."""
    return load(RunConfig, preset, overrides)


def load(
    schema: type[Config],
    preset: Path | None,
    overrides: Sequence[str] = (),
    flags: Mapping[Flag, str] | None = None,
    known_flags: Sequence[Flag] = (),
) -> Config:
    """Read a preset and apply overrides and short flags.

    Args:
        schema: the config tree of the command.
        preset: TOML file, or None for defaults alone.
        overrides: words `--section.key value` or `--section.key=value`.
        flags: short flags that were given, with their values.
        known_flags: all short flags of the command, which errors name beside their keys.

    Raises:
        UserError: the file cannot be read, a key is unknown (the nearest valid name is given), a value is wrong,
            or a flag and an override of the same key disagree.
    """
    tree = copy.deepcopy(schema.job_defaults)
    if preset is not None:
        _merge(tree, _read_preset(preset), schema)
    assigned = _Assignments(schema, tree)
    for key, word in _override_words(overrides):
        assigned.override(key, word)
    for flag, word in (flags or {}).items():
        assigned.flag(flag, word)
    assigned.apply()
    for name, field in schema.model_fields.items():
        # An error about a missing key names the key, not the section that is not there.
        if field.is_required() and sections_of(field.annotation):
            tree.setdefault(name, {})
    return _validate(schema, tree, known_flags)


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part a command line into words for argparse and `--section.key value` overrides.

    argparse does not know the overrides: it would take the value of one for a positional argument.
    """
    others: list[str] = []
    overrides: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        key, equals, _ = word.partition("=")
        if not key.startswith("--") or "." not in key:
            others.append(word)
            continue
        overrides.append(word)
        if not equals and remaining and not remaining[0].startswith("--"):
            overrides.append(remaining.pop(0))
    return others, overrides


def describe_keys(schema: type[RunConfig] = RunConfig) -> str:
    """Every key that overrides may name, with its type, default and meaning, for --help."""
    return describe(schema, schema.keys_read, schema.job_defaults)


def validate(tree: dict[str, Any]) -> RunConfig:
    """Validate the plain tree of a run; the first problem becomes a one-line UserError."""
    return _validate(RunConfig, tree, ())


def _validate(
    schema: type[Config], tree: dict[str, Any], known_flags: Sequence[Flag]
) -> Config:
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        problems = error.errors()
        # A mistyped key explains why the right one is missing.
        unknown = [one for one in problems if one["type"] == "extra_forbidden"]
        first = (unknown or problems)[0]
        place = _locate(schema, first["loc"])
        raise UserError(_explain(schema, dict(first), place, known_flags)) from error


# From words to a tree.


def _read_preset(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"preset: expected a TOML file, got {path} ({error.strerror}); check the path"
        ) from error
    except ValueError as error:
        raise UserError(f"preset {path}: expected TOML, got {error}") from error


def _override_words(words: Sequence[str]) -> Iterable[tuple[str, str]]:
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or "." not in key:
            raise UserError(
                f"expected --section.key value, got {word!r}; --help lists the keys"
            )
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise UserError(f"--{key}: expected a value after it, got nothing")
            value = remaining.pop(0)
        yield key, value


def _parse(word: str, annotation: Any) -> Any:
    """TOML values keep their type (`1e-4`, `true`, `[1, 2]`); anything else is text, or a list of texts `a,b`."""
    try:
        value = tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        if word.lower() == "none":
            return None
        if is_list(annotation) and not takes_text(annotation):
            items = word.removeprefix("[").removesuffix("]").split(",")
            return [item.strip() for item in items if item.strip()]
        return word
    # A folder or a model may be called 7.
    if takes_text(annotation) and not isinstance(value, str | list):
        return word
    return value


def _merge(low: dict[str, Any], high: Mapping[str, Any], annotation: Any) -> None:
    """Put the values of a higher layer over those of a lower one, in place."""
    if "kind" in high:
        _drop_other_kinds(low, high["kind"], annotation)
    for name, value in high.items():
        below = low.get(name)
        field = field_of(annotation, name, high.get("kind", low.get("kind")))
        if isinstance(below, dict) and isinstance(value, dict) and field is not None:
            _merge(below, value, field.annotation)
        else:
            low[name] = value


def _drop_other_kinds(
    section: dict[str, Any], kind: Any, annotation: Any, keep: Iterable[str] = ()
) -> None:
    """Drop the keys that belong to other kinds of the section alone; mistyped ones stay, to be reported."""
    of_this_kind: set[str] = set()
    of_other_kinds: set[str] = set()
    for option in sections_of(annotation):
        names = set(option.model_fields)
        if kind in kind_names(option):
            of_this_kind |= names
        else:
            of_other_kinds |= names
    # An unknown kind is an error about the kind, not about the keys beside it.
    for name in of_other_kinds - of_this_kind - set(keep):
        section.pop(name, None)


@dataclass(slots=True)
class _Assignment:
    key: str
    word: str
    written: str
    """How the user wrote the key, for errors."""


class _Assignments:
    """Values that the command line gives to keys of a tree."""

    def __init__(self, schema: type[RunConfig], tree: dict[str, Any]) -> None:
        self._schema, self._tree = schema, tree
        self._by_key: dict[str, _Assignment] = {}
        self._flags_by_kind: list[tuple[Flag, str]] = []

    def override(self, key: str, word: str) -> None:
        """A later override of the same key wins. Keys that the command does not read are refused (UserError)."""
        read = self._schema.keys_read
        is_read = any(f"{key}.".startswith(f"{name}.") for name in read)
        is_known = _type_at(self._schema, self._tree, key) is not None
        if read and is_known and not is_read:
            raise UserError(
                f"--{key}: expected a key that this command reads ({', '.join(read)}), got another; leave it out"
            )
        self._by_key[key] = _Assignment(key, word, f"--{key}")

    def flag(self, flag: Flag, word: str) -> None:
        """Also sets what the flag implies (UserError when an override of the same key says something else)."""
        for key, implied in flag.implies:
            self._set_by_flag(flag, key, implied)
        if flag.otherwise is None:
            self._set_by_flag(flag, flag.key, word)
        else:
            self._flags_by_kind.append((flag, word))

    def apply(self) -> None:
        """Write all values into the tree."""
        for assignment in self._by_key.values():
            self._write(assignment)
        # Which key such a flag means is known once all kinds are.
        for flag, word in self._flags_by_kind:
            key = flag.key
            if flag.otherwise and _type_at(self._schema, self._tree, key) is None:
                key = flag.otherwise
            self._write(self._set_by_flag(flag, key, word))

    def _set_by_flag(self, flag: Flag, key: str, word: str) -> _Assignment:
        assignment = _Assignment(key, word, flag.name)
        other = self._by_key.setdefault(key, assignment)
        annotation = _type_at(self._schema, self._tree, key)
        if _parse(other.word, annotation) != _parse(word, annotation):
            raise UserError(
                f"{flag.name} and {other.written}: expected one value of {key}, got two that differ; give one of them"
            )
        return other

    def _write(self, assignment: _Assignment) -> None:
        *parents, leaf = assignment.key.split(".")
        container: Any = self._tree
        annotation: Any = self._schema
        path: list[str] = []
        for name in parents:
            container, annotation = _enter(container, annotation, name, assignment)
            path.append(name)
        value = _parse(assignment.word, _child_type(container, annotation, leaf))
        if isinstance(container, list):
            _put_element(container, leaf, value, assignment)
            return
        if leaf == "kind":
            prefix = ".".join(path)
            given = {
                key.removeprefix(f"{prefix}.").partition(".")[0]
                for key in self._by_key
                if key.startswith(f"{prefix}.")
            }
            _drop_other_kinds(container, value, annotation, keep=given)
        container[leaf] = value


def _child_type(container: Any, annotation: Any, name: str) -> Any:
    """The type of a key below a section, table or list; None when there is no such key."""
    element = element_of(annotation)
    if element is not None and not sections_of(annotation):
        return element
    kind = container.get("kind") if isinstance(container, dict) else None
    field = field_of(annotation, name, kind)
    return None if field is None else field.annotation


def _type_at(schema: type[Section], tree: Any, key: str) -> Any:
    """The type of a dotted key, with the kinds that the tree chooses; None when there is no such key."""
    annotation: Any = schema
    container = tree
    for name in key.split("."):
        annotation = _child_type(container, annotation, name)
        if isinstance(container, list):
            at_hand = name.isdecimal() and int(name) < len(container)
            container = container[int(name)] if at_hand else None
        else:
            container = container.get(name) if isinstance(container, dict) else None
    return annotation


def _enter(
    container: Any, annotation: Any, name: str, assignment: _Assignment
) -> tuple[Any, Any]:
    """The section, table or list below `container`, made if it is not there, and its type."""
    inner_type = _child_type(container, annotation, name)
    if isinstance(container, list):
        index = _index(container, name, assignment)
        if index == len(container):
            container.append({})
        # In a list of sections a bare name stands for a section of this kind.
        if isinstance(container[index], str):
            container[index] = {"kind": container[index]}
        inner = container[index]
    else:
        if name not in container:
            kind = container.get("kind")
            container[name] = _default_list(annotation, name, kind)
        inner = container[name]
    is_leaf = inner_type is not None and not (
        sections_of(inner_type) or element_of(inner_type)
    )
    if is_leaf or not isinstance(inner, dict | list):
        raise UserError(
            f"{assignment.written}: expected a section before the last name, got {name}, which is a value"
        )
    return inner, inner_type


def _default_list(annotation: Any, name: str, kind: Any) -> dict[str, Any] | list[Any]:
    """A copy of a list's default, which an override may change in one place; {} for what is no list."""
    field = field_of(annotation, name, kind)
    if field is None or not is_list(field.annotation) or field.is_required():
        return {}
    items: list[Any] = []
    for item in field.get_default(call_default_factory=True) or ():
        if isinstance(item, Section):
            given = item.model_dump(exclude_unset=True)
            items.append({"kind": getattr(item, "kind", None), **given})
        else:
            items.append(item)
    return items


def _put_element(
    items: list[Any], name: str, value: Any, assignment: _Assignment
) -> None:
    index = _index(items, name, assignment)
    if index == len(items):
        items.append(value)
    else:
        items[index] = value


def _index(items: list[Any], name: str, assignment: _Assignment) -> int:
    if not name.isdecimal() or int(name) > len(items):
        raise UserError(
            f"{assignment.written}: expected a number from 0 to {len(items)} in the list, got {name!r}; "
            f"{len(items)} adds an element"
        )
    return int(name)


# From pydantic's errors to lines.


@dataclass(slots=True)
class _Place:
    """Where in the tree an error is."""

    path: list[str]
    """As the user writes it."""
    generic: list[str]
    """With NAME and N for entries and elements."""
    kinds: dict[str, str]
    """Generic path of each union of kinds on the way -> the kind that was chosen."""
    annotation: Any
    is_private: bool
    """The value may hold what must not be shown."""


def _locate(schema: type[Section], location: Sequence[int | str]) -> _Place:
    """Follow pydantic's path, which names the chosen member of a union as well."""
    place = _Place([], [], {}, schema, False)
    kind: str | None = None
    for part in location:
        name = str(part)
        sections = sections_of(place.annotation)
        if len(sections) > 1 and kind is None and name in kinds_of(place.annotation):
            kind = name
            place.kinds[".".join(place.generic)] = kind
            continue
        element = element_of(place.annotation)
        if sections:
            field = field_of(place.annotation, name, kind)
            place.annotation = None if field is None else field.annotation
            place.is_private |= field is not None and not field.repr
            place.generic.append(name)
        elif element is not None and (
            isinstance(part, int) or not is_list(place.annotation)
        ):
            place.generic.append(ELEMENT if is_list(place.annotation) else ENTRY)
            place.annotation = element
        else:
            # The name of a member of a union of plain types, such as `str`.
            continue
        place.path.append(name)
        kind = None
    for section in sections_of(place.annotation):
        fields = section.model_fields.values()
        place.is_private |= any(not field.repr for field in fields)
    return place


def _explain(
    schema: type[Section], error: dict[str, Any], place: _Place, flags: Sequence[Flag]
) -> str:
    """One line about the first problem: the key, what was expected, what came."""
    key = ".".join(place.path)
    flag = next((flag.name for flag in flags if flag.sets(key)), None)
    written = f"{flag} ({key})" if flag else key
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        hint = suggestion(schema, place.generic, place.kinds)
        return f"unknown config key {key}{hint}"
    is_section = isinstance(value, dict | Section)
    got = "" if is_section or place.is_private else f", got {value!r}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        kinds = " or ".join(kinds_of(place.annotation))
        if isinstance(value, dict):
            return f"{written}.kind: expected {kinds}, got {value.get('kind')!r}"
        return f"{written}: expected a section of kind {kinds}{got}; set {key}.kind"
    if kind == "model_type":
        return f"{written}: expected a section{got}; set keys of it, see --help"
    if kind == "missing":
        return f"{written}: expected a value, got nothing; set it"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{written}: {message}{got}" if key else message
