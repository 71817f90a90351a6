"""Builds the config of a command from a TOML preset, short flags and `--section.key value` words.

For example, `python -m cluster.generate bdhs --preset p.toml --seed 7 --model.tuning.r 8`:

    1. The preset is read into a tree of plain values:  {"model": {"tuning": {"kind": "lora", "alpha": 16}}}
    2. Words and flags become assignments, a key each:  model.tuning.r = "8", and for the flag --seed run.seed = "7"
    3. Assignments are written into the tree:           {"run": {"seed": 7}, "model": {"tuning": {…, "r": 8}}}
    4. pydantic makes the config of it:                 Config(run=Run(seed=7), model=Model(tuning=Lora(alpha=16, r=8)))

Below the preset lie the command's own defaults (`job_defaults` of its schema). The later one wins; only a flag and an
override of the same key must agree.

`plain_tree` writes into trees, `keys` knows the keys and their types, `flags` the short flags, and `messages` explains
errors of step 4. Every mistake is one line that names the key as the user wrote it.
"""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from common.command_line.keys import describe, is_below, sections_of
from common.command_line.messages import explain
from common.command_line.plain_tree import (
    Assignment,
    Tree,
    merge,
    parse,
    type_at,
    write,
)
from common.config import RunConfig
from common.config.flags import Flag
from common.errors import UserError

Config = TypeVar("Config", bound=RunConfig)


def load_config(
    preset: Path | None,
    overrides: Sequence[str] = (),
) -> RunConfig:
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
    # A copy, since the defaults are shared by all calls.
    tree = copy.deepcopy(schema.job_defaults)
    if preset is not None:
        merge(tree, _read_preset(preset), schema)
    command_line = _CommandLine(schema, tree)
    for key, word in keys_and_words(overrides):
        command_line.add_override(key, word)
    for flag, word in (flags or {}).items():
        command_line.add_flag(flag, word)
    command_line.apply()
    for name, field in schema.model_fields.items():
        # An error about a missing key names the key, not the section that is not there.
        if field.is_required() and sections_of(field.annotation):
            tree.setdefault(name, {})
    return _validate(schema, tree, known_flags)


def validate(tree: Tree) -> RunConfig:
    """Validate the plain tree of a run; the first problem becomes a one-line UserError."""
    return _validate(RunConfig, tree, ())


def describe_keys(schema: type[RunConfig] = RunConfig) -> str:
    """Every key that overrides may name, with its type, default and meaning, for --help."""
    return describe(schema, schema.keys_read, schema.job_defaults)


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
        # A missing value is reported later, with the name of its key. Negative numbers begin with one dash.
        has_value = remaining and not remaining[0].startswith("--")
        if not equals and has_value:
            overrides.append(remaining.pop(0))
    return others, overrides


def _depth(assignment: Assignment) -> int:
    return assignment.key.count(".")


def keys_and_words(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The keys that overrides name, and the words for them (UserError when one has no value)."""
    remaining = list(overrides)
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


def _read_preset(path: Path) -> Tree:
    try:
        text = path.read_text()
        # A run leaves its resolved config as JSON.
        if path.suffix == ".json":
            tree: Tree = json.loads(text)
            return tree
        return tomllib.loads(text)
    except OSError as error:
        raise UserError(
            f"preset: expected a TOML file, got {path} ({error.strerror}); check the path"
        ) from error
    # Bad TOML, bad JSON and bad UTF-8.
    except ValueError as error:
        raise UserError(
            f"preset {path}: expected TOML, or a run's config.json, got {error}"
        ) from error


def _validate(
    schema: type[Config],
    tree: Tree,
    known_flags: Sequence[Flag],
) -> Config:
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, schema, known_flags)) from error


class _CommandLine:
    """What overrides and flags assign to the keys of a tree. Collected first, then written by `apply`."""

    def __init__(self, schema: type[RunConfig], tree: Tree) -> None:
        self._schema = schema
        self._tree = tree
        self._by_key: dict[str, Assignment] = {}
        # Flags whose key depends on the kinds that are chosen, with their words.
        self._undecided: list[tuple[Flag, str]] = []

    def add_override(self, key: str, word: str) -> None:
        """A later override of the same key wins. Keys that the command does not read are refused (UserError)."""
        keys_read = self._schema.keys_read
        is_known = type_at(self._schema, self._tree, key) is not None
        # An unknown key is left to validation, which suggests the right one.
        if keys_read and is_known and not is_below(key, keys_read):
            names = ", ".join(keys_read)
            raise UserError(
                f"--{key}: expected a key that this command reads ({names}), got another; leave it out"
            )
        self._by_key[key] = Assignment(key, word, f"--{key}")

    def add_flag(self, flag: Flag, word: str) -> None:
        """Set the flag's key and what it implies (UserError when an override says something else)."""
        for key, implied_word in flag.implies:
            self._assign_by_flag(flag, key, implied_word)
        if flag.otherwise is None:
            self._assign_by_flag(flag, flag.key, word)
        else:
            self._undecided.append((flag, word))

    def apply(self) -> None:
        """Write all assignments into the tree."""
        # A whole section comes before parts of it, in whatever order they were written.
        by_depth = sorted(self._by_key.values(), key=_depth)
        # All keys go along: a new kind must not drop what a later assignment sets.
        for assignment in by_depth:
            write(self._tree, self._schema, assignment, self._by_key)
        # Only now are all kinds known, and with them the keys of these flags.
        for flag, word in self._undecided:
            key = self._key_of(flag)
            assignment = self._assign_by_flag(flag, key, word)
            write(self._tree, self._schema, assignment, self._by_key)

    def _key_of(self, flag: Flag) -> str:
        """The flag's key, or the one that takes its place where the chosen kinds do not have it."""
        has_key = type_at(self._schema, self._tree, flag.key) is not None
        if flag.otherwise is None or has_key:
            return flag.key
        return flag.otherwise

    def _assign_by_flag(
        self,
        flag: Flag,
        key: str,
        word: str,
    ) -> Assignment:
        """The assignment of a key that a flag sets: the flag's, or an equal one that an override made before."""
        assignment = Assignment(key, word, flag.name)
        first = self._by_key.setdefault(key, assignment)
        # Values are compared, not words: 0.2 and 0.20 agree.
        annotation = type_at(self._schema, self._tree, key)
        if parse(first.word, annotation) != parse(word, annotation):
            raise UserError(
                f"{flag.name} and {first.written}: expected one value of {key}, got two that differ; give one of them"
            )
        return first
