"""Which way of weight pushes a configuration means, and which it is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from common.config import RunConfig

LORA = {"kind": "lora", "r": 4}
GPUS = {
    "cluster": {"placement": "colocated"},
    "rollout": {"num_gpus": 1},
    "learner": {"num_gpus": 1},
}


def config_of(transport: str = "auto", **sections: Any) -> RunConfig:
    values = {
        "weights": {"transport": transport},
        "mixture": {"online_fraction": 1.0},
        **sections,
    }
    return RunConfig.model_validate(values)


@pytest.mark.parametrize(
    ("sections", "name"),
    [
        ({}, "broadcast"),
        ({"model": {"tuning": LORA}}, "adapter"),
        # Engines run adapters of the language side alone.
        ({"model": {"tuning": {**LORA, "sides": ["vision"]}}}, "broadcast"),
        # ipc, which nobody has seen at work on a GPU, has to be named.
        (GPUS, "broadcast"),
        ({"cluster": {"placement": "colocated"}}, "broadcast"),
    ],
)
def test_auto_is_the_best_that_the_run_has(sections: Any, name: str) -> None:
    assert config_of(**sections).transport == name


@pytest.mark.parametrize(
    ("transport", "pushed"),
    [("adapter", True), ("broadcast", False), ("object_store", False)],
)
def test_a_transport_says_what_of_lora_is_pushed(transport: str, pushed: bool) -> None:
    config = config_of(transport, model={"tuning": LORA})
    assert config.pushes_adapter == pushed
    # A run directory keeps it: read again, it is the same.
    assert RunConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("transport", "sections", "message"),
    [
        (
            "ipc",
            {},
            r"\(broadcast, object_store\), got ipc, which needs engines and ranks on shared GPUs",
        ),
        (
            "adapter",
            {},
            r"\(broadcast, object_store\), got adapter, which needs model.tuning.kind = lora",
        ),
        (
            "ipc",
            {"model": {"tuning": LORA}},
            r"\(adapter, broadcast, object_store\), got ipc",
        ),
        (
            "broadcast",
            {"model": {"tuning": {**LORA, "push": "adapter"}}},
            "carries merged weights, got model.tuning.push = adapter; leave one of them out",
        ),
        ("carrier_pigeon", {}, "weights.transport"),
    ],
)
def test_what_a_run_lacks_is_refused_with_what_it_has(
    transport: str, sections: Any, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        config_of(transport, **sections)
