"""Which tests stay together when pytest-xdist shares them between processes."""

from __future__ import annotations

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

SHARED_ENGINES = "tests/actors/"
"""Tests of this folder share the vLLM engines of its conftest."""
ENGINES_APART = "test_engine_start"
"""It closes in-process engines of its own, which take the parallel state of all others in their process along."""
RAY_MODULES = (
    "test_bdhs_workers",
    "test_chaos",
    "test_end_to_end",
    "test_family_runs",
    "test_gpu_first_hour",
    "test_judge_quality",
    "test_leaving_nodes",
    "test_notebook",
    "test_online_loop",
    "test_bundles",
    "test_private_runs",
    "test_ray_jobs",
    "test_ray_runtime",
    "test_ray_start",
    "test_real_deaths",
    "test_second_world",
    "test_several_ranks",
    "test_split_engine",
    "test_two_nodes",
    "test_two_nodes_push",
)
"""These start a local Ray cluster, which takes the whole machine: one at a time."""


def group_of(nodeid: str) -> str:
    """The module of a test, or the name of what tests of several modules share."""
    module = nodeid.partition("::")[0]
    if closes_engines(nodeid):
        return module
    if module.startswith(SHARED_ENGINES):
        return "engines"
    if PurePosixPath(module).stem in RAY_MODULES:
        return "ray"
    return module


def closes_engines(nodeid: str) -> bool:
    """Whether a test must not run between those that share engines."""
    return PurePosixPath(nodeid.partition("::")[0]).stem == ENGINES_APART


class GroupScheduling(LoadScopeScheduling):
    """Sends all tests of a group to the same process.

    xdist's own `--dist loadgroup` does nothing here: it marks node ids in a way that pytest 9.2 ignores.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
