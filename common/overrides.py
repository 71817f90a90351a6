"""From a TOML preset and `--section.key value` words to a validated config, with errors a person can act on."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from common.config import RunConfig
from common.errors import UserError
from common.section import Section


def load_config(preset: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a preset and apply overrides such as `["--learner.num_steps", "5"]`.

    Raises:
        UserError: the file cannot be read, a key is unknown (the nearest valid name is given), or a value is wrong.
    """
    tree: dict[str, Any] = {}
    if preset is not None:
        try:
            tree = tomllib.loads(preset.read_text())
        except OSError as error:
            raise UserError(
                f"preset: expected a TOML file, got {preset} ({error.strerror}); check the path"
            ) from error
        except ValueError as error:
            raise UserError(f"preset {preset}: expected TOML, got {error}") from error
    for key, value in _words(overrides):
        _assign(tree, key, _parse(value))
    return validate(tree)


def validate(tree: dict[str, Any]) -> RunConfig:
    """Validate a plain tree; the first problem becomes a one-line UserError."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        location = _location(first["loc"], tree)
        key = ".".join(location)
        if first["type"] == "extra_forbidden":
            raise UserError(f"unknown config key {key}{_nearest(location)}") from error
        message = first["msg"].removeprefix("Value error, ")
        got = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
        raise UserError(f"{key}: {message}{got}" if key else message) from error


def _location(loc: Sequence[int | str], tree: Any) -> list[str]:
    """The key as the user wrote it: pydantic's own path names the chosen kind of a union as well."""
    location: list[str] = []
    for index, part in enumerate(loc):
        known = (isinstance(tree, dict) and part in tree) or isinstance(tree, list)
        if known or index == len(loc) - 1:
            location.append(str(part))
        tree = tree[part] if known else tree
    return location


def describe_keys() -> str:
    """Every key with its type, default and meaning, for --help."""
    lines = []
    for key, kind, default, meaning in _leaves(RunConfig, ()):
        lines.append(
            f"  --{key} {kind}  (default {default})"
            + (f"\n        {meaning}" if meaning else "")
        )
    return "\n".join(lines)


def _words(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    words = list(overrides)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or "." not in word:
            raise UserError(
                f"expected --section.key value, got {word!r}; --help lists the keys"
            )
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words:
                raise UserError(f"--{key}: expected a value after it, got nothing")
            value = words.pop(0)
        yield key, value


def _parse(value: str) -> Any:
    """TOML values keep their type (`1e-4`, `true`, `[1, 2]`); anything else is a string."""
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return None if value.lower() == "none" else value


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set one key; a number is the index of an entry in a list (`evaluation.suites.0.test_scenes`)."""
    *sections, leaf = key.split(".")
    node: Any = tree
    for section in sections:
        is_list = isinstance(node, list)
        node = _entry(node, section, key) if is_list else node.setdefault(section, {})
        if not isinstance(node, dict | list):
            raise UserError(
                f"--{key}: expected {section} to be a section, got the value {node!r}"
            )
    if isinstance(node, list):
        _entry(node, leaf, key)
        node[int(leaf)] = value
    else:
        node[leaf] = value


def _entry(entries: list[Any], index: str, key: str) -> Any:
    """An entry of a list of sections; a bare name becomes the section that it is short for."""
    if not index.isdigit() or int(index) >= len(entries):
        raise UserError(
            f"--{key}: expected an index below {len(entries)}, the number of entries so far, got {index}"
        )
    if isinstance(entries[int(index)], str):
        entries[int(index)] = {"kind": entries[int(index)]}
    return entries[int(index)]


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The section classes inside an annotation (a union of kinds has several)."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _sections(inner)


def _leaves(
    section: type[BaseModel], prefix: tuple[str, ...]
) -> Iterator[tuple[str, str, Any, str]]:
    for name, field in section.model_fields.items():
        inner = list(_sections(field.annotation))
        origin = get_origin(field.annotation)
        entry = ("NAME",) if origin is dict else ("0",) if origin is tuple else ()
        for child in inner:
            yield from _leaves(child, (*prefix, name, *entry))
        if not inner or origin is tuple:
            kind = getattr(field.annotation, "__name__", None) or str(
                field.annotation
            ).replace("typing.", "")
            if kind in ("Literal", "Optional", "Union", "UnionType"):
                kind = str(field.annotation).replace("typing.", "")
            yield (
                ".".join((*prefix, name)),
                kind,
                field.default,
                field.description or "",
            )


def _nearest(location: list[str]) -> str:
    valid = {key for key, *_ in _leaves(RunConfig, ())}
    valid |= {
        key.rsplit(".", depth)[0]
        for key in valid
        for depth in range(1, key.count(".") + 1)
    }
    wanted, leaf = ".".join(location), location[-1]
    same_leaf = sorted(key for key in valid if key.rpartition(".")[2] == leaf)
    siblings = [
        key for key in valid if key.rpartition(".")[0] == wanted.rpartition(".")[0]
    ]
    close = (
        [key for key in same_leaf if key.startswith(location[0] + ".")]
        or difflib.get_close_matches(wanted, siblings, n=1, cutoff=0.6)
        or same_leaf
        or difflib.get_close_matches(wanted, sorted(valid), n=1, cutoff=0.5)
    )
    return f"; did you mean {close[0]}?" if close else "; --help lists the valid ones"
