"""Models of 7B, 32B and 72B by their config files; every number is derived here by hand, or published."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from cluster.planner.gpu_kinds import GPU_KINDS, PROCESS_BYTES
from cluster.planner.plan import Plan, plan_run
from cluster.planner.sampling import kv_token_bytes
from cluster.planner.shape import ModelShape, numel_of
from cluster.planner.trainable import adapter_numel
from cluster.planner.training import NF4_BYTES
from common.config import Lora, RunConfig

Shapes = Mapping[str, ModelShape]
ShapeOf = Callable[[str], ModelShape]
LORA = {"kind": "lora", "r": 128, "alpha": 256}


def planned(shapes: Shapes, path: str, **sections: dict[str, object]) -> Plan:
    values: dict[str, dict[str, object]] = {
        "model": {"path": f"models/{path}", "dtype": "bfloat16", "max_length": 4096},
        "rollout": {"num_gpus": 1, "max_tokens": 512},
        "mixture": {"online_fraction": 1.0},
        "learner": {"num_gpus": 1, "micro_batch": 1},
    }
    for name, settings in sections.items():
        values[name] = {**values.get(name, {}), **settings}
    config = RunConfig.model_validate(values)
    return plan_run(config, GPU_KINDS["h100"], shapes)


def rank_parts(plan: Plan) -> Mapping[str, float]:
    (rank,) = [seat for seat in plan.seats if seat.role == "learner"]
    return rank.parts


@pytest.mark.parametrize(
    ("name", "numel"),
    [
        # LLaVA-1.5's, and the newline behind a row of tiles.
        ("llava-v1.6-vicuna-7b-hf", 7_063_427_072 + 4096),
        ("Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("Qwen2.5-VL-32B-Instruct", 33_452_718_336),
        ("Qwen2.5-VL-72B-Instruct", 73_410_777_344),
        ("Qwen3-VL-8B-Instruct", 8_767_123_696),
    ],
)
def test_parameters_are_as_many_as_published(
    shape: ShapeOf, name: str, numel: int
) -> None:
    assert shape(name).numel == numel


def test_the_parts_of_llava(shape: ShapeOf) -> None:
    """Vicuna's: 2 V d + d + layers (4 d² + 3 d m + 2 d); the projector's: 1024 d + d + d² + d, and a newline row d."""
    model = shape("llava-v1.6-vicuna-7b-hf")
    width, inner = 4096, 11008
    layer = 4 * width**2 + 3 * width * inner + 2 * width
    language = 2 * 32_064 * width + width + 32 * layer
    assert numel_of(model.of_part("language")) == language == 6_738_939_904
    projector = 1024 * width + width + width**2 + width + width
    assert numel_of(model.of_part("projector")) == projector
    # 24 x 24 tiles: the whole picture, four tiles, and a newline behind each of 48 rows.
    assert model.image_tokens == 576 + 4 * 576 + 48


def test_adapters_are_r_times_the_edges_of_a_matrix(shape: ShapeOf) -> None:
    """A layer of Vicuna: 4 matrices of 4096 + 4096, 3 of 4096 + 11008; the tower has none."""
    edges = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    numel = adapter_numel(Lora(), shape("llava-v1.6-vicuna-7b-hf"))
    assert numel == 32 * 128 * edges == 319_815_680


@pytest.mark.parametrize(
    ("name", "split", "num_bytes"),
    [
        # 2 (keys, values) x layers x key heads x head width x 2 bytes
        ("llava-v1.6-vicuna-7b-hf", 1, 2 * 32 * 32 * 128 * 2),
        ("Qwen2.5-VL-7B-Instruct", 1, 2 * 28 * 4 * 128 * 2),
        ("Qwen2.5-VL-72B-Instruct", 1, 2 * 80 * 8 * 128 * 2),
        ("Qwen2.5-VL-72B-Instruct", 4, 2 * 80 * 2 * 128 * 2),
        # 8 heads on 16 devices: one each.
        ("Qwen2.5-VL-72B-Instruct", 16, 2 * 80 * 1 * 128 * 2),
    ],
)
def test_a_cached_token(shape: ShapeOf, name: str, split: int, num_bytes: int) -> None:
    assert kv_token_bytes(shape(name), "bfloat16", split) == num_bytes


@pytest.mark.parametrize(
    ("name", "zero_stage", "ranks"),
    [
        ("llava-v1.6-vicuna-7b-hf", 2, 4),
        ("Qwen2.5-VL-7B-Instruct", 1, 8),
        ("Qwen2.5-VL-32B-Instruct", 3, 16),
        ("Qwen2.5-VL-72B-Instruct", 3, 64),
    ],
)
def test_full_tuning_under_zero(
    shapes: Shapes, name: str, zero_stage: int, ranks: int
) -> None:
    """P parameters, T trained: 2 P of weights, 2 T of gradients, 12 T of optimizer state, split from a stage on."""
    learner = {"zero_stage": zero_stage, "num_ranks": ranks, "global_batch": ranks}
    parts = rank_parts(planned(shapes, name, learner=learner))
    shape = shapes[f"models/{name}"]
    trained = shape.numel - numel_of(shape.of_part("vision"))
    assert parts["optimizer"] == 12 * trained / ranks
    if zero_stage < 3:
        assert parts["weights"] == 2 * shape.numel
        split = 1 if zero_stage == 1 else ranks
        assert parts["gradients"] == 2 * trained / split
        return
    # Small parameters stay whole: a thousandth of the model.
    assert parts["weights"] == pytest.approx(2 * shape.numel / ranks, rel=0.05)
    assert parts["reference"] == parts["weights"]


def test_the_reference_of_full_tuning_shares_a_frozen_tower(shapes: Shapes) -> None:
    parts = rank_parts(planned(shapes, "llava-v1.6-vicuna-7b-hf"))
    shape = shapes["models/llava-v1.6-vicuna-7b-hf"]
    tower = numel_of(shape.of_part("vision"))
    assert parts["reference"] == 2 * (shape.numel - tower)
    # Qwen's merger trains inside of the tower, so that there the whole model is copied.
    parts = rank_parts(planned(shapes, "Qwen2.5-VL-7B-Instruct"))
    assert parts["reference"] == parts["weights"]


def test_four_bits(shapes: Shapes) -> None:
    """A block of 64 weights: 32 bytes, one byte of scale; 256 of those bytes share one of 4 bytes."""
    assert pytest.approx((32 + 1 + 4 / 256) / 64) == NF4_BYTES
    name = "llava-v1.6-vicuna-7b-hf"
    tuning = {**LORA, "quantize": "nf4"}
    plan = planned(shapes, name, model={"tuning": tuning})
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    others = shapes[f"models/{name}"].numel - matrices
    expected = matrices * NF4_BYTES + 2 * (others + 319_815_680)
    assert rank_parts(plan)["weights"] == pytest.approx(expected)


def test_offload_moves_to_ram(shapes: Shapes) -> None:
    name = "Qwen2.5-VL-72B-Instruct"
    sides: dict[str, Plan] = {}
    for offload in ("none", "optimizer", "params"):
        learner = {"zero_stage": 3, "num_ranks": 32, "offload": offload}
        sides[offload] = planned(shapes, name, learner=learner)
    optimizer = rank_parts(sides["none"])["optimizer"]
    assert "optimizer" not in rank_parts(sides["optimizer"])
    (rank,) = [seat for seat in sides["params"].seats if seat.role == "learner"]
    assert rank.host["optimizer"] == optimizer
    assert {"weights", "reference"} <= set(rank.host)


def test_offload_below_stage_3_has_a_buffer_on_each_side(shapes: Shapes) -> None:
    """Of Vicuna's largest parameter, the embedding of 32,064 x 4,096; T / n each of gradients and updated weights."""
    name = "llava-v1.6-vicuna-7b-hf"
    learner = {"zero_stage": 2, "num_ranks": 4, "offload": "optimizer"}
    plan = planned(shapes, name, learner=learner)
    (rank,) = [seat for seat in plan.seats if seat.role == "learner"]
    buffer = 2 * 32_064 * 4096
    shape = shapes[f"models/{name}"]
    trained = shape.numel - numel_of(shape.of_part("vision"))
    assert rank.parts["offload buffer"] == buffer
    assert rank.host["gradients"] == (2 + 4) * trained / 4 + buffer
    assert rank.host["updated weights"] == 2 * trained / 4


def test_stage_1_offloads_no_gradients_in_two_bytes(shapes: Shapes) -> None:
    """They are on the device until the update, and RAM has them in float32 alone."""
    name = "llava-v1.6-vicuna-7b-hf"
    learner = {"zero_stage": 1, "num_ranks": 4, "offload": "optimizer"}
    plan = planned(shapes, name, learner=learner)
    (rank,) = [seat for seat in plan.seats if seat.role == "learner"]
    trained = plan.trained_numel
    assert rank.parts["gradients"] == 2 * trained
    assert rank.host["gradients"] == 4 * trained / 4 + 2 * 32_064 * 4096


def test_the_bucket_of_stage_3_stays(shapes: Shapes) -> None:
    """500 M numbers of two bytes, which an engine that shares the GPU finds taken."""
    name = "llava-v1.6-vicuna-7b-hf"
    plan = planned(shapes, name, learner={"zero_stage": 3, "num_ranks": 4})
    assert rank_parts(plan)["reduce bucket"] == 1e9


def test_a_limit_of_pixels_limits_the_tokens_of_a_picture(shapes: Shapes) -> None:
    """A token of Qwen2.5-VL is 28 x 28 pixels; without a limit a picture may fill the prompt."""
    name = "Qwen2.5-VL-7B-Instruct"
    limits = {"max_pixels": 512 * 28 * 28, "max_images": 1}
    limited = planned(shapes, name, model=limits)
    assert limited.rows.image_tokens == 512
    several = planned(shapes, name, model={**limits, "max_images": 3})
    assert several.rows.image_tokens == 3 * 512
    assert planned(shapes, name).rows.image_tokens == 4096 - 512


def test_pictures_are_read_ahead_in_ram(shapes: Shapes) -> None:
    plan = planned(shapes, "Qwen2.5-VL-7B-Instruct", learner={"input_workers": 2})
    (rank,) = [seat for seat in plan.seats if seat.role == "learner"]
    assert rank.host["input workers"] + rank.host["pictures"] == 0.6e9 + 2**30


def test_a_rank_loads_with_one_parameter_in_ram(shapes: Shapes) -> None:
    """Of 72B on 64 GPUs: the embedding of 152,064 x 8,192, 2.5 GB; offloaded weights stay in RAM from the start."""
    name = "Qwen2.5-VL-72B-Instruct"
    learner = {"zero_stage": 3, "num_ranks": 64, "global_batch": 64}
    embedding = 2 * 152_064 * 8192
    on_gpus = planned(shapes, name, learner=learner)
    assert on_gpus.nodes.start == 8 * (embedding + PROCESS_BYTES)
    in_ram = planned(shapes, name, learner={**learner, "offload": "params"})
    share = 2 * shapes[f"models/{name}"].numel / 64
    # Policy and reference; small parameters stay whole.
    expected = 8 * (2 * share + embedding + PROCESS_BYTES)
    assert in_ram.nodes.start == pytest.approx(expected, rel=0.03)


def test_the_step_of_the_7b_preset_is_eight_flops_a_parameter(shapes: Shapes) -> None:
    """LoRA with checkpointing: reference 2, policy 2 + 2 again, backward 2; attention, adapters and tower on top."""
    learner = {"zero_stage": 2, "num_ranks": 4, "gradient_checkpointing": True}
    name = "llava-v1.6-vicuna-7b-hf"
    plan = planned(shapes, name, model={"tuning": LORA}, learner=learner)
    # A pair's row: 3,584 of a prompt, twice 512.
    assert plan.work.tokens == 32 * (3584 + 2 * 512)
    decoder = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    least = 8 * decoder * plan.work.tokens
    assert least < plan.work.step_flops < 1.25 * least
    assert plan.seconds is not None
    expected_s = plan.work.step_flops / (4 * 989e12 * 0.4)
    assert plan.seconds.compute == pytest.approx(expected_s)


def test_a_checkpoint_is_masters_and_moments(shapes: Shapes) -> None:
    """4 + 8 bytes for each of an adapter's 319,815,680 numbers, over 4 ranks."""
    name = "llava-v1.6-vicuna-7b-hf"
    for stage in (0, 3):
        learner = {"num_ranks": 4, "zero_stage": stage}
        plan = planned(shapes, name, model={"tuning": LORA}, learner=learner)
        nodes = plan.nodes
        assert nodes.checkpoint == 12 * 319_815_680
        policy = 2 * shapes[f"models/{name}"].numel
        expected_s = nodes.checkpoint / 4 / 20e9 + policy / 3e9
        assert nodes.copy_s == pytest.approx(expected_s)
        assert nodes.write_s == pytest.approx((nodes.checkpoint + policy) / 1e9)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("tuning", [LORA, {"kind": "full"}], ids=["lora", "full"])
def test_an_export_is_in_the_ram_of_rank_0(
    background: bool, tuning: dict[str, object], shapes: Shapes
) -> None:
    """Beside copies of the state; of LoRA the merged matrices as well: Vicuna's layers, see the tests above."""
    name = "llava-v1.6-vicuna-7b-hf"
    plan = planned(
        shapes,
        name,
        model={"tuning": tuning},
        learner={"num_ranks": 4, "zero_stage": 2},
        checkpoint={"background": background},
    )
    gathered = 2 * shapes[f"models/{name}"].numel
    if tuning is LORA:
        gathered += 2 * 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    copied = plan.nodes.checkpoint if background else 0
    assert plan.nodes.saving - plan.nodes.running == gathered + copied


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_every_kept_checkpoint_may_have_been_the_best(
    keep: int, shapes: Shapes
) -> None:
    """keep and the one that is written hold a policy, and one more checkpoint may be there: that of an older best."""
    plan = planned(shapes, "Qwen2.5-VL-7B-Instruct", checkpoint={"keep": keep})
    checkpoint, policy = plan.nodes.checkpoint, plan.nodes.policy
    assert plan.nodes.disk == (keep + 2) * checkpoint + (keep + 1) * policy


def test_a_push_is_the_model_or_its_adapter(shapes: Shapes) -> None:
    name = "llava-v1.6-vicuna-7b-hf"
    tuning = {**LORA, "push": "merged"}
    whole = planned(shapes, name, model={"tuning": tuning})
    assert whole.work.push_bytes == 2 * shapes[f"models/{name}"].numel
    adapter = planned(shapes, name, model={"tuning": LORA})
    assert adapter.work.push_bytes == 2 * 319_815_680
    # Object store and a copy for the engines, in shared memory; in buckets nothing lies there.
    assert adapter.nodes.shared_memory == 2 * adapter.work.push_bytes
    assert whole.nodes.shared_memory == 0
    stored = planned(
        shapes,
        name,
        model={"tuning": tuning},
        weights={"transport": "object_store"},
    )
    assert stored.nodes.shared_memory == 2 * whole.work.push_bytes


def test_attention_is_the_square_of_the_length(shapes: Shapes) -> None:
    """Twice the batch is twice the work; twice the length is more than twice."""
    name = "Qwen2.5-VL-7B-Instruct"
    single = planned(shapes, name, learner={"global_batch": 1}).work.step_flops
    double = planned(shapes, name, learner={"global_batch": 2}).work.step_flops
    assert double == pytest.approx(2 * single)
    model = {"max_length": 2 * 4096}
    longer = planned(shapes, name, model=model, learner={"global_batch": 1})
    assert longer.work.step_flops > 1.9 * single


def test_a_token_goes_through_its_experts_alone(shape: ShapeOf) -> None:
    """Two layers of 8 experts of 3 x 256 x 128, 2 of them for a token, which then sees an inner width of 2 x 128."""
    model = shape("moe")
    experts = [weight for weight in model.weights if weight.active < 1]
    assert numel_of(experts) == 2 * 8 * 3 * 256 * 128
    assert {weight.active for weight in experts} == {0.25}
    assert all(weight.multiplies for weight in experts)
    assert model.text.inner == 256


def test_pairs_that_come_again_need_as_much_less_sampling(shapes: Shapes) -> None:
    """512 sequences are 8 rounds of 64, and half of them 4; with max_staleness 1 nothing is left to run ahead by."""
    name = "Qwen2.5-VL-7B-Instruct"
    batch = {"global_batch": 256}
    once = planned(shapes, name, learner=batch).seconds
    uses = {"online_uses": 2}
    twice = planned(shapes, name, learner=batch, mixture=uses).seconds
    assert once is not None
    assert twice is not None
    assert twice.rollout == pytest.approx(once.rollout / 2)
    training = once.compute + once.communication
    assert once.total == pytest.approx(max(training, once.rollout) + once.push)
    assert twice.total == pytest.approx(training + twice.rollout + twice.push)
