"""What an engine and a rank leave each other of a GPU that they share, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.planner.check import check_fits
from cluster.planner.seats import Seat, taking_turns
from common.config import RunConfig
from common.errors import UserError
from tests.cluster.planner.model_configs import write

ENGINE = Seat(
    "rollout",
    8,
    1,
    {"weights": 14, "KV cache": 30, "working memory": 2, "driver": 1},
    {"process": 3},
    80,
)
RANK = Seat(
    "learner",
    8,
    1,
    {
        "weights": 14,
        "optimizer": 20,
        "activations": 9,
        "working memory": 5,
        "vision cache": 1,
        "update": 7,
        "driver": 1,
    },
    {"process": 3},
    80,
)


def config_of(placement: str, sleep_level: int = 1) -> RunConfig:
    return RunConfig.model_validate(
        {
            "cluster": {"placement": placement, "sleep_level": sleep_level},
            "mixture": {"online_fraction": 1.0},
        }
    )


def test_each_has_what_the_other_leaves() -> None:
    """A rank that waits keeps 14 + 20 + 1 + 1 = 36; an engine that sleeps keeps its driver's 1."""
    engine, rank = taking_turns(config_of("colocated"), ENGINE, RANK)
    assert engine.limit == 80 - 36
    assert rank.limit == 80 - 1
    assert engine.host == {"process": 3, "weights asleep": 14}
    # 14 + 30 + 2 + 1 = 47 GiB: together they do not fit, although alone each does.
    assert ENGINE.device_bytes > engine.limit
    dropped, _ = taking_turns(config_of("colocated", 2), ENGINE, RANK)
    assert dropped.host == {"process": 3}


def test_with_gpus_of_their_own_nothing_changes() -> None:
    seats = taking_turns(config_of("disaggregated"), ENGINE, RANK)
    assert seats == (ENGINE, RANK)


def shared_h100(folder: Path, utilization: float) -> RunConfig:
    engine = {"kv_cache_bytes": 0, "gpu_memory_utilization": utilization}
    return RunConfig.model_validate(
        {
            "cluster": {"gpu": "h100", "placement": "colocated"},
            "model": {
                "path": str(folder),
                "dtype": "bfloat16",
                "tuning": {"kind": "lora"},
            },
            "rollout": {"num_workers": 8, "num_gpus": 1, "engine": engine},
            "mixture": {"online_fraction": 1.0},
            "learner": {"num_ranks": 8, "num_gpus": 1, "micro_batch": 1},
        }
    )


def test_a_cache_that_leaves_the_rank_no_room_is_refused(tmp_path: Path) -> None:
    folder = write("Qwen2.5-VL-7B-Instruct", tmp_path)
    line = "most of it KV cache .*; set a lower engine.gpu_memory_utilization"
    with pytest.raises(UserError, match=line):
        check_fits(shared_h100(folder, 0.85))
    check_fits(shared_h100(folder, 0.5))
