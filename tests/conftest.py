"""How pytest-xdist shares the tests between processes (`make check`, `make test`)."""

from __future__ import annotations

import os
from collections import defaultdict

import pytest

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if IS_WORKER:
    # One core per worker. torch reads the variable when it is imported.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

SHARED_ENGINES = "tests/actors"
"""Tests of this folder that need a vLLM engine share those of its conftest."""
RAY_MODULES = (
    "test_end_to_end",
    "test_generate",
    "test_placement",
    "test_runtime",
    "test_several_ranks",
)
"""Real tests of these modules start a local Ray cluster, which takes the whole machine: one at a time."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a module in one process and start the long groups first.

    A long group that comes last would leave the other process idle.
    """
    if not IS_WORKER:
        return
    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        name = group_of(item)
        # xdist sends all tests with the same mark to the same process.
        item.add_marker(pytest.mark.xdist_group(name))
        groups[name].append(item)
    items.clear()
    for group in sorted(groups.values(), key=weight, reverse=True):
        items += group


def group_of(item: pytest.Item) -> str:
    """The module of a test, or the name of what real tests of several modules share."""
    module = item.nodeid.partition("::")[0]
    if is_marked(item, "real"):
        if module.startswith(SHARED_ENGINES):
            return "engines"
        if item.path.stem in RAY_MODULES:
            return "ray"
    return module


def weight(group: list[pytest.Item]) -> tuple[bool, bool, int]:
    """How long a group takes, roughly: those with slow tests, then those with real ones."""
    any_slow = any(is_marked(item, "slow") for item in group)
    any_real = any(is_marked(item, "real") for item in group)
    return any_slow, any_real, len(group)


def is_marked(item: pytest.Item, name: str) -> bool:
    return item.get_closest_marker(name) is not None
