"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """A check and what came of it.

    Attributes:
        name: of what was checked.
        state: what is there.
        remedy: what to do; empty when all is well.
        is_fatal: nothing works, or this run cannot, until it is done.
    """

    name: str
    state: str
    remedy: str = ""
    is_fatal: bool = False

    @property
    def level(self) -> str:
        """ok, warning or failure."""
        if self.is_fatal:
            return "failure"
        return "warning" if self.remedy else "ok"


def gib(num_bytes: float) -> str:
    """Bytes as a person reads them."""
    return f"{num_bytes / GIB:.1f} GiB"
