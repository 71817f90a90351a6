"""Makes the suites that a config names.

A new kind of suite is a section with a `kind` in `common/config/suites.py`, which joins the union `SuiteConfig`,
and a case here.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.config import SuiteConfig
from common.protocols import Suite


def make_suites(sections: Sequence[SuiteConfig]) -> list[Suite]:
    """The suites of `evaluation.suites`, in order."""
    suites = []
    for section in sections:
        suites.append(_make_suite(section))
    return suites


def _make_suite(section: SuiteConfig) -> Suite:
    # A suite's module is imported only when it is asked for.
    match section.kind:
        case "shapes":
            from reward.shapes_world import ShapesSuite

            return ShapesSuite(section)
