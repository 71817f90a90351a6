"""What a rank needs for a while: buckets of gradients, copies that travel, weights that ZeRO-3 has whole; by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from cluster.planner.shape import ModelShape
from cluster.planner.training import Trained, trained
from common.config import RunConfig

LLAVA = "llava-v1.6-vicuna-7b-hf"
EMBEDDING = 32_064 * 4096
"""Numbers of the largest matrix; the head has as many."""
FULL = {"kind": "full"}
LORA = {"kind": "lora", "r": 128, "alpha": 256}
THIN_LORA = {"kind": "lora", "r": 16, "alpha": 32}
ADAPTERS = 319_815_680
"""Numbers of them, in 32 layers of 7 matrices."""
BUCKET = 500_000_000
LIVE = 1_000_000_000
PIECE = 50_000_000
ShapeOf = Callable[[str], ModelShape]


def state_of(
    shape: ModelShape,
    tuning: Mapping[str, object] = LORA,
    **learner: object,
) -> Trained:
    """Of one of four ranks, with one forward a step unless a batch is named."""
    settings = {
        "num_gpus": 1,
        "num_ranks": 4,
        "global_batch": 4,
        "micro_batch": 1,
        **learner,
    }
    model = {
        "path": "models/x",
        "dtype": "bfloat16",
        "max_length": 4096,
        "tuning": tuning,
    }
    values = {"model": model, "learner": settings, "mixture": {"online_fraction": 1}}
    return trained(RunConfig.model_validate(values), shape)


def test_a_full_bucket_travels_as_a_copy_while_another_is_filled(
    shape: ShapeOf,
) -> None:
    """Stage 2: two buckets, a copy, and a gradient that is on its way into a bucket; two bytes a number."""
    state = state_of(shape(LLAVA), FULL, zero_stage=2)
    assert state.with_activations == 2 * (3 * BUCKET + EMBEDDING)


def test_gradients_that_fit_into_a_bucket_travel_behind_backward(
    shape: ShapeOf,
) -> None:
    """The buckets of a GPU are there before; those of this backward are in no other place yet."""
    state = state_of(shape(LLAVA), zero_stage=2)
    assert state.with_activations == 2 * (2 * BUCKET + 128 * 11_008)
    share = ADAPTERS / 4
    assert state.without_activations == 2 * (2 * BUCKET + ADAPTERS - share)
    # With two forwards a step there are the gradients of the first.
    state = state_of(shape(LLAVA), zero_stage=2, global_batch=8)
    assert state.without_activations == 2 * (2 * BUCKET + ADAPTERS)


def test_a_cpu_has_the_pages_that_are_written(shape: ShapeOf) -> None:
    """Behind backward: gradients in a bucket, and the copy that travels."""
    state = state_of(shape(LLAVA), zero_stage=2, num_gpus=0, global_batch=8)
    assert state.with_activations == 2 * 128 * 11_008
    assert state.without_activations == 2 * (ADAPTERS + ADAPTERS)


def test_nothing_travels_from_a_single_rank(shape: ShapeOf) -> None:
    """The update: a bucket of stage 1, gradients in float32, and the flat copy that they are made from."""
    state = state_of(shape(LLAVA), zero_stage=1, num_ranks=1)
    assert state.without_activations == 2 * BUCKET + (4 + 2) * ADAPTERS


@pytest.mark.parametrize("cache", ["off", "auto"])
def test_zero_3_keeps_what_the_next_pass_will_use(shape: ShapeOf, cache: str) -> None:
    """Where forwards with and without adapters take turns, only the head and the matrix at work are whole."""
    model = shape(LLAVA)
    fast = {"reference_cache": cache}
    state = state_of(model, THIN_LORA, zero_stage=3, fast=fast)
    gradient = 16 * 11_008
    if cache == "off":
        assert state.with_activations == 2 * (EMBEDDING + EMBEDDING + gradient)
        # What is fetched ahead, a piece of it as it came and cut up.
        assert state.without_activations == 2 * (EMBEDDING + LIVE + PIECE)
        return
    assert state.with_activations == 2 * (LIVE + PIECE + gradient)


def test_zero_3_has_hooks_on_everything(shape: ShapeOf) -> None:
    """20 kB a module and 7 kB a parameter; an adapter is 10 modules, and 2 parameters; a reference has its share."""
    model = shape(LLAVA)
    adapters = 32 * 7
    modules = model.modules + 10 * adapters
    parameters = len(model.weights) + 2 * adapters
    state = state_of(model, zero_stage=3)
    assert state.hooks == 20_000 * modules + 7_000 * parameters
    state = state_of(model, FULL, zero_stage=3)
    assert state.hooks == 2 * (20_000 * model.modules + 7_000 * len(model.weights))
    assert state_of(model, zero_stage=2).hooks == 0
