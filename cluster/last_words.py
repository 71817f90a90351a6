"""How a run that fails says so: one line on the terminal, and the whole traceback in RUN/errors.log."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.entry import file_trouble
from common.errors import RunFailed, UserError, plain_message

ERRORS = "errors.log"
MAX_SHOWN = 400


@contextmanager
def last_words(run_dir: Path) -> Iterator[None]:
    """Within it any error that is no fault of the input becomes one line.

    With SIGHTLINE_DEBUG=1 in the environment it stays as it is.

    Raises:
        RunFailed: what went wrong, where the traceback is, and what a resume continues from.
    """
    try:
        yield
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:
        if os.environ.get("SIGHTLINE_DEBUG") or _is_about_a_file(error):
            raise
        path = run_dir / ERRORS
        # A full disk must not hide what came before it.
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(time.strftime("--- %Y-%m-%d %H:%M:%S %z\n"))
            file.write("".join(traceback.format_exception(error)))
        line = f"{line_of(error)}; the traceback is in {path}; {_next(run_dir)}"
        raise RunFailed(line) from None


def _is_about_a_file(error: Exception) -> bool:
    cause = getattr(error, "cause", error)
    return isinstance(cause, OSError) and file_trouble(cause) is not None


def line_of(error: Exception) -> str:
    """The message, with the type of an error that is a bug."""
    lines = plain_message(error).strip().splitlines()
    message = lines[0][:MAX_SHOWN] if lines else ""
    if isinstance(error, UserError | RunFailed):
        return message
    kind = type(getattr(error, "cause", None) or error).__name__
    return f"{kind}: {message}" if message else kind


def _next(run_dir: Path) -> str:
    checkpoints = sorted((run_dir / "checkpoints").glob("step_*"))
    if not checkpoints:
        return "there is no checkpoint yet, so --resume begins again"
    return f"--resume continues from {checkpoints[-1].name}"
