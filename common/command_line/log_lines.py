"""Lines of our log say who wrote them, and with which weights: `12:00:01 learner/1 v3 message`."""

from __future__ import annotations

import logging

LINE = "%(asctime)s %(who)s %(message)s"
TIME = "%H:%M:%S"


class Who(logging.Filter):
    """Adds `who` to every record: the role with its rank, and the weight version once there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.role = ""
        self.version: int | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Every record passes."""
        version = "" if self.version is None else f" v{self.version}"
        record.who = f"{self.role}{version}"
        return True


_who = Who()


def start_lines(role: str) -> None:
    """Write warnings of this process to standard error, in lines of this role: controller, rollout/0, learner/1, …

    A process that has handlers of its own, such as one of tests, keeps them.
    """
    _who.role = role
    handler = logging.StreamHandler()
    handler.addFilter(_who)
    handler.setFormatter(logging.Formatter(LINE, TIME))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def note_version(version: int) -> None:
    """The weights that this process works with from now on."""
    _who.version = version
