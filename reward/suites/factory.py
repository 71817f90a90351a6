"""Makes the suites that a config names.

A new kind of suite is a section with a `kind` in `common/config/suites.py`, which joins the union `SuiteConfig`,
and a case here.
"""

from __future__ import annotations

from common.config import RunConfig, SuiteConfig
from common.protocols import Suite


def make_suites(config: RunConfig) -> list[Suite]:
    """The suites of `evaluation.suites`, in order."""
    suites: list[Suite] = []
    for section in config.evaluation.suites:
        suites.append(_make_suite(section, config))
    return suites


def _make_suite(section: SuiteConfig, config: RunConfig) -> Suite:
    # A suite's module is imported only when it is asked for.
    match section.kind:
        case "shapes":
            from reward.shapes_world import ShapesSuite

            return ShapesSuite(section)
        case "tabletop":
            from reward.tabletop_world import TabletopSuite

            return TabletopSuite(section)
        case "prompts":
            from reward.suites.prompts import PromptsSuite

            return PromptsSuite(section, config.data)
        case "preference":
            from reward.suites.preference import PreferenceSuite

            return PreferenceSuite(section)
        case _:
            from reward.benchmarks.factory import make_benchmark

            return make_benchmark(section)
