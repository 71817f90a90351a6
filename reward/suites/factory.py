"""The place to add a suite: a config section with a `kind` in `common/config.py`, a class, and a line here."""

from __future__ import annotations

from collections.abc import Sequence

from common.config import SuiteConfig
from common.protocols import Suite


def make_suites(sections: Sequence[SuiteConfig]) -> list[Suite]:
    """The suites that `evaluation.suites` asks for, in order."""
    return [_make_suite(section) for section in sections]


def _make_suite(section: SuiteConfig) -> Suite:
    match section.kind:
        case "shapes":
            from reward.shapes_world import ShapesSuite

            return ShapesSuite(section)
