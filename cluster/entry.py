"""What all entry points share: how a command line is read, and how a command ends."""

from __future__ import annotations

import argparse
import errno
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

from cluster.signals import (
    STATUS_OF_SIGNALS,
    Interrupted,
    Terminated,
    raising_on_sigterm,
)
from common.config.overrides import split_overrides
from common.errors import RunFailed, UserError, plain_message
from common.paths import expand_home

_ELSEWHERE = "choose another place"
_ROOM = ("room to write", "free some, or choose another place, and run it again")
_RIGHTS = ("rights to use it", "change its owner or mode, or choose another place")
_NO_DISK_FAULT = (
    "a disk that works",
    "look at its mount and its logs, then run it again",
)
FULL = {errno.ENOSPC, errno.EDQUOT}
FILE_TROUBLES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: ("a file system that takes so large a file", _ELSEWHERE),
    errno.EROFS: ("a place that can be written", _ELSEWHERE),
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EEXIST: ("a folder, or nothing there yet", _ELSEWHERE),
    errno.ENOTDIR: ("folders on the way to it, not a file", _ELSEWHERE),
    errno.EISDIR: ("a file", "give the name of a file, not of a folder"),
    errno.ENOENT: (
        "it to be there",
        "check the path; SIGHTLINE_DEBUG=1 shows who wants it",
    ),
    errno.ENAMETOOLONG: ("a shorter name", _ELSEWHERE),
    errno.ELOOP: ("links that lead somewhere", "repair the link"),
    errno.EBUSY: ("a file that nobody holds", _ELSEWHERE),
    errno.ETXTBSY: ("a file that nobody runs", _ELSEWHERE),
    errno.EMFILE: ("more open files", "raise the limit with `ulimit -n 65536`"),
    errno.ENFILE: ("more open files", "close other programs"),
    errno.EIO: _NO_DISK_FAULT,
    errno.ESTALE: _NO_DISK_FAULT,
    errno.ETIMEDOUT: _NO_DISK_FAULT,
}
"""Errors of the system that say something about the user's disk, not about our code: what was expected, what to do."""

CLOSED_PIPE = 141
"""The exit status that shells know for a closed pipe: 128 + SIGPIPE."""

PRESET_HELP = "TOML file of config keys, such as cluster/configs/*.toml"


def exit_status(call: Callable[[], int | None], interrupted: str) -> int:
    """Run a command and return its exit status.

    It is what the call returns (0 for None), 1 after a RunFailed and 2 after a UserError, whose message is printed, or
    after a file or folder that cannot be used, 130 after Ctrl-C and 143 after SIGTERM, when the line `interrupted` is
    printed, and 141 when nobody reads the output any more. With SIGHTLINE_DEBUG=1 in the environment, errors of files
    keep their traceback.
    """
    try:
        with raising_on_sigterm():
            return call() or 0
    except (Interrupted, KeyboardInterrupt) as end:
        print(interrupted, file=sys.stderr)
        return status_of(end)
    except (UserError, RunFailed) as error:
        print(f"error: {plain_message(error)}", file=sys.stderr)
        return status_of(error)
    except BrokenPipeError:
        if _stdout_is_open():
            raise
        return CLOSED_PIPE
    except OSError as error:
        line = file_trouble(error)
        if line is None or os.environ.get("SIGHTLINE_DEBUG"):
            raise
        print(f"error: {line}", file=sys.stderr)
        return status_of(error)


def status_of(error: BaseException) -> int:
    """The exit status of a command that ends with this error, except for a closed pipe; see `exit_status`."""
    if isinstance(error, Interrupted):
        return error.status
    if isinstance(error, KeyboardInterrupt):
        number = SIGTERM if isinstance(error, Terminated) else SIGINT
        return STATUS_OF_SIGNALS + number
    if isinstance(error, UserError):
        return 2
    if isinstance(error, OSError) and file_trouble(error) is not None:
        return 2
    return 1


def _stdout_is_open() -> bool:
    """False when whoever read our output is gone, as in `… | head`; then nothing more is written."""
    stdout = sys.stdout.fileno()
    reader = select.poll()
    reader.register(stdout, 0)
    if not reader.poll(0):
        return True
    # Python flushes once more at exit and would complain there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return False


def file_trouble(error: OSError) -> str | None:
    """One line about a file or folder that cannot be used: where, what, what to do; None when it is anything else.

    An error without a path is a bug or about the network, except where no path is needed to act on it.
    """
    # From another process, Ray wraps it.
    cause = getattr(error, "cause", None)
    if isinstance(cause, OSError):
        error = cause
    known = FILE_TROUBLES.get(error.errno or 0)
    if known is None:
        return None
    expected, remedy = known
    path = error.filename2 or error.filename
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str):
        if error.errno not in FULL:
            return None
        path = "an output"
    got = os.strerror(error.errno or 0)
    return f"{path}: expected {expected}, got {got!r}; {remedy}"


def command_parser(
    prog: str, description: str, epilog: str = ""
) -> argparse.ArgumentParser:
    """A parser whose help keeps the lines of its texts.

    Options are written out: code that looks for one among the words of a line would miss its beginning alone.
    """
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
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


def expand_paths(arguments: argparse.Namespace) -> None:
    """Replace the paths among the arguments by what a person means (UserError where that is nothing)."""
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, _expanded(name, value))
        elif isinstance(value, list):
            setattr(arguments, name, [_expanded(name, member) for member in value])


def _expanded(name: str, value: Any) -> Any:
    """A path as a person means it; anything else as it is."""
    if not isinstance(value, Path):
        return value
    try:
        return Path(expand_home(str(value)))
    except ValueError as error:
        raise UserError(f"{name}: {error}, got {str(value)!r}") from error
