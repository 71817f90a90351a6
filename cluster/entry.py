"""What all entry points share: how a command line is read, and how a command ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from common.config.overrides import split_overrides
from common.errors import UserError, plain_message

PRESET_HELP = "TOML file of config keys, such as cluster/configs/*.toml"


def exit_status(call: Callable[[], int | None], interrupted: str) -> int:
    """Run a command and return its exit status.

    It is what the call returns (0 for None), 2 after a UserError, whose message is printed, and 130 after Ctrl-C, when
    the line `interrupted` is printed.
    """
    try:
        return call() or 0
    except UserError as error:
        print(f"error: {plain_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130


def command_parser(
    prog: str, description: str, epilog: str = ""
) -> argparse.ArgumentParser:
    """A parser whose help keeps the lines of its texts."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_preset(parser: argparse.ArgumentParser) -> None:
    """Add the option `--preset`."""
    parser.add_argument("--preset", type=Path, metavar="FILE", help=PRESET_HELP)


def parse_line(
    parser: argparse.ArgumentParser, words: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """Part a command line (default: this process's) into arguments and config overrides.

    Words that the parser does not know are left among the overrides, where they are refused in one line.
    """
    others, overrides = split_overrides(sys.argv[1:] if words is None else words)
    arguments, unknown = parser.parse_known_args(others)
    return arguments, [*unknown, *overrides]
