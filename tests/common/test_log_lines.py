"""Lines of the log say who wrote them."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import logging
from common.command_line.log_lines import note_version, start_lines

start_lines("learner/1")
log = logging.getLogger("sightline")
log.warning("starts")
note_version(3)
log.warning("%d rows dropped", 2)
logging.getLogger("somebody.else").warning("is heard, too")
log.info("is not")
"""


def test_role_rank_and_version_stand_in_each_line() -> None:
    """In a process of its own: this one's log is pytest's."""
    words = [sys.executable, "-c", SCRIPT]
    said = subprocess.run(words, capture_output=True, text=True, check=True)
    lines = [line.partition(" ")[2] for line in said.stderr.splitlines()]
    assert lines == [
        "learner/1 starts",
        "learner/1 v3 2 rows dropped",
        "learner/1 v3 is heard, too",
    ]
