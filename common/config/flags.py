"""Short flags of the commands: each stands for one key of the config tree, `--seed 7` for `--run.seed 7`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flag:
    """A short flag, or a positional argument, and the config key that it sets.

    Attributes:
        name: as it is written, `--seed`; without dashes it is a positional argument.
        key: the config key.
        help: a phrase for --help.
        metavar: what --help calls the value.
        otherwise: the key to set where the chosen kinds do not have `key`.
        implies: further keys and the words that the flag sets them to.
        switch: it takes no value and sets its key to true.
        optional: a positional argument that may be left out.
    """

    name: str
    key: str
    help: str
    metavar: str | None = None
    otherwise: str | None = None
    implies: tuple[tuple[str, str], ...] = ()
    switch: bool = False
    optional: bool = False

    @property
    def dest(self) -> str:
        """The attribute of the parsed arguments that holds the value."""
        return f"flag:{self.name}"

    def sets(self, key: str) -> bool:
        """Whether the flag can set this key."""
        return key in (self.key, self.otherwise)


def add_flags(
    parser: argparse.ArgumentParser,
    flags: Iterable[Flag],
) -> None:
    """Add the flags to a parser. Values stay text, None where not given: the config checks them."""
    for flag in flags:
        if flag.switch:
            # A word as all flags give, not True: it is parsed with the type of its key.
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
                flag.name,
                dest=flag.dest,
                metavar=metavar,
                help=flag.help,
            )
        else:
            # argparse wants the attribute as the name of a positional argument.
            parser.add_argument(
                flag.dest,
                nargs="?" if flag.optional else None,
                metavar=flag.metavar,
                help=flag.help,
            )


def given_flags(
    arguments: argparse.Namespace,
    flags: Iterable[Flag],
) -> dict[Flag, str]:
    """The flags that the command line gives, with their values."""
    given = {}
    for flag in flags:
        value = getattr(arguments, flag.dest)
        if value is not None:
            given[flag] = value
    return given
