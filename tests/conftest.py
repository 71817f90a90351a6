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
        # xdist appends the marker's name to the node id and sends equal names to one process.
        item.add_marker(pytest.mark.xdist_group(name))
        groups[name].append(item)
    longest_first = sorted(groups.values(), key=weight, reverse=True)
    items[:] = [item for group in longest_first for item in group]


def group_of(item: pytest.Item) -> str:
    """The module of a test; the folder for tests that share started engines."""
    module = item.nodeid.partition("::")[0]
    if module.startswith(SHARED_ENGINES) and is_marked(item, "real"):
        return SHARED_ENGINES
    return module


def weight(group: list[pytest.Item]) -> tuple[int, int]:
    """How long a group takes, roughly: slow tests, then real ones."""
    num_slow = sum(is_marked(item, "slow") for item in group)
    num_real = sum(is_marked(item, "real") for item in group)
    return num_slow, num_real


def is_marked(item: pytest.Item, name: str) -> bool:
    return item.get_closest_marker(name) is not None
