"""How every entry point ends: 0, or one line for the user and a status of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable

from common.errors import UserError, plain_message


def exit_status(call: Callable[[], int | None], interrupted: str) -> int:
    """Run; what it returns (None: 0), 2 after a UserError's message, 130 after Ctrl-C and the line `interrupted`."""
    try:
        return call() or 0
    except UserError as error:
        print(f"error: {plain_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
