"""How `make check` and `make test` share the tests between processes, with pytest-xdist."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import settings

# No test is a timed one: what takes 10 ms takes 300 ms on a busy machine.
settings.register_profile("sightline", deadline=None)
settings.load_profile("sightline")

# A shell starts what runs behind it deaf to Ctrl-C, and all that this starts: tests that interrupt would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if IS_WORKER:
    # One core per worker. torch reads the variable when it is imported.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.scheduling import GroupScheduling

    # Groups start in the order of collection, which the hook below has chosen.
    config.option.loadscopereorder = False
    return GroupScheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the long groups first: one that came last would leave the other process idle."""
    from tests.scheduling import closes_engines, group_of

    if not IS_WORKER:
        # Before any engine is shared.
        items.sort(key=lambda item: not closes_engines(item.nodeid))
        return

    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        groups[group_of(item.nodeid)].append(item)
    items.clear()
    for group in sorted(groups.values(), key=weight, reverse=True):
        items += group


def weight(group: list[pytest.Item]) -> tuple[int, int, int]:
    """How long a group takes, roughly: first those with slow tests, then those with real ones."""
    num_slow = sum(is_marked(item, "slow") for item in group)
    num_real = sum(is_marked(item, "real") for item in group)
    return num_slow, num_real, len(group)


def is_marked(item: pytest.Item, name: str) -> bool:
    return item.get_closest_marker(name) is not None
