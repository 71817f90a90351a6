"""Every cluster preset is accepted by the planner, and placed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cluster.placement.bundles import plan
from cluster.planner.check import problems_of
from cluster.planner.gpu_kinds import GPU_KINDS
from cluster.planner.plan import plan_run
from cluster.planner.shape import ModelShape
from cluster.planner.table import describe_plan
from common.config.overrides import load_config

NUM_GPUS = {
    "llava15_7b_povid": 5,
    "llava16_7b_mixed": 8,
    "llava16_7b_judged": 8,
    "qwen25_vl_7b_mixed": 8,
    "qwen3_vl_8b_mixed": 8,
    "qwen25_vl_72b_mixed": 64,
}


@pytest.mark.parametrize("name", NUM_GPUS)
def test_a_preset_fits(name: str, shapes: Mapping[str, ModelShape]) -> None:
    config = load_config(Path(f"cluster/configs/{name}.toml"))
    assert sum(bundle.num_gpus for bundle in plan(config)) == NUM_GPUS[name]
    assert config.cluster.gpu is not None
    kind = GPU_KINDS[config.cluster.gpu]
    planned = plan_run(config, kind, shapes)
    assert describe_plan(planned, [])
    assert list(problems_of(config, planned, [])) == []
    # The cache of an engine holds a few whole sequences at the least.
    assert planned.full_sequences > 4
    assert planned.seconds is not None
