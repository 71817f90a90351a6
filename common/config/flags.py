"""Short flags of the commands: each stands for one key of the config tree."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flag:
    """A short flag (or a positional argument, without dashes) and the config key that it sets.

    `otherwise` is the key to set where the chosen kinds do not have `key`. `implies` are values that the flag sets
    besides. A `switch` takes no value and sets its key to true.
    """

    name: str
    key: str
    help: str
    metavar: str | None = None
    otherwise: str | None = None
    implies: tuple[tuple[str, str], ...] = ()
    switch: bool = False

    @property
    def dest(self) -> str:
        """The attribute of the parsed arguments that holds the value."""
        return f"flag:{self.name}"

    def sets(self, key: str) -> bool:
        """Whether the flag can set this key."""
        return key in (self.key, self.otherwise)


def add_flags(parser: argparse.ArgumentParser, flags: Iterable[Flag]) -> None:
    """Add the flags to a parser. Values stay text, None where not given: the config checks them."""
    for flag in flags:
        if flag.switch:
            parser.add_argument(
                flag.name,
                dest=flag.dest,
                action="store_const",
                const="true",
                help=flag.help,
            )
        elif flag.name.startswith("-"):
            metavar = flag.metavar or flag.name.strip("-").upper().replace("-", "_")
            parser.add_argument(
                flag.name, dest=flag.dest, metavar=metavar, help=flag.help
            )
        else:
            parser.add_argument(flag.dest, metavar=flag.metavar, help=flag.help)


def given_flags(
    arguments: argparse.Namespace, flags: Iterable[Flag]
) -> dict[Flag, str]:
    """The flags that the command line gives, with their values."""
    given = {}
    for flag in flags:
        value = getattr(arguments, flag.dest)
        if value is not None:
            given[flag] = value
    return given
