"""`--auto-resume N`: a small parent that starts a run again when its process has died."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from cluster.signals import STATUS_OF_SIGNALS
from common.errors import UserError

OPTION = "--auto-resume"
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
ENDS = {0, 2, STATUS_OF_SIGNALS + signal.SIGINT, STATUS_OF_SIGNALS + signal.SIGTERM}
"""Success, bad input, and an end that was asked for: nothing that another start would change."""


def without_option(words: Sequence[str]) -> list[str]:
    """The command line of the child."""
    kept: list[str] = []
    is_value = False
    for word in words:
        if is_value:
            is_value = False
        elif word == OPTION:
            is_value = True
        elif not word.startswith(f"{OPTION}="):
            kept.append(word)
    return kept


def run_again(command: Sequence[str], most: int) -> int:
    """Run a command, and up to `most` times again with --resume when it ends otherwise than it should.

    Returns:
        The last exit status. Signals that ask for an end reach the child, and end both.

    Raises:
        UserError: `most` is below 0.
    """
    if most < 0:
        raise UserError(
            f"{OPTION}: expected how often to start again, got {most}; give 0 or more"
        )
    words = list(command)
    for count in range(most + 1):
        status = _run(words)
        if status in ENDS or -status in (signal.SIGINT, signal.SIGTERM):
            break
        if count == most:
            break
        print(
            f"the run ended with status {status}; resuming it ({count + 1} of {most})",
            file=sys.stderr,
        )
        time.sleep(min(FIRST_PAUSE_S * 2.0**count, LONGEST_PAUSE_S))
        if "--resume" not in words:
            words.append("--resume")
    return status if status >= 0 else STATUS_OF_SIGNALS - status


def _run(words: Sequence[str]) -> int:
    process = subprocess.Popen(words)

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    # The terminal sends Ctrl-C to both.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)
