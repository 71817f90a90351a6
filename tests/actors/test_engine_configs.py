"""Full vLLM configurations of published models and of every preset, from config files alone, as on GPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import actors.engine.arguments
from actors.engine.arguments import engine_arguments
from actors.vllm_api import AsyncEngineArgs
from cluster.runtime.judge_engines import engine_config, judge_seats
from common.chat.positions import positions_in
from common.command_line.engine_arguments import FIXED, KEY_OF, argument_names
from common.config import EngineOptions, Model, Rollout
from common.config.overrides import load_config
from tests.actors.real_configs import all_configs, write_all

IN_SUBPROCESS = "vllm.model_executor.models.registry._run_in_subprocess"
PRESETS = sorted(Path("cluster/configs").glob("*.toml"))
WORLDS = ("shapes", "tabletop")
CLUSTER_PRESETS = [path for path in PRESETS if not path.stem.startswith(WORLDS)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return write_all(tmp_path_factory.mktemp("models"))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments as for the CUDA build on a node of eight GPUs."""
    platform = SimpleNamespace(is_cpu=lambda: False)
    monkeypatch.setattr(actors.engine.arguments, "current_platform", platform)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    # There are no weights whose names could be looked at.
    monkeypatch.setattr(actors.engine.arguments, "load_arguments", lambda path: {})

    def here(call: Callable[[], Any]) -> Any:
        return call()

    # vLLM imports every model class in a process of its own, 10 s each, to keep CUDA out of this one.
    monkeypatch.setattr(IN_SUBPROCESS, here)


def arguments_of(model: Model, rollout: Rollout) -> dict[str, Any]:
    sizes = SimpleNamespace(arguments={})
    config = AutoConfig.from_pretrained(model.path)
    encoder: Any = SimpleNamespace(config=config, max_images=8, picture_sizes=sizes)
    return engine_arguments(model, rollout, encoder, 0)


def vllm_config(model: Model, rollout: Rollout) -> Any:
    arguments = arguments_of(model, rollout)
    return AsyncEngineArgs(
        **arguments, enable_log_requests=False
    ).create_engine_config()


def check(config: Any, model: Model, rollout: Rollout) -> None:
    """What vLLM has made of our settings."""
    split = rollout.engine.tensor_parallel_size
    parallel = config.parallel_config
    assert config.model_config.max_model_len == model.max_length
    assert config.model_config.dtype == torch.bfloat16
    assert config.model_config.is_multimodal_model
    assert parallel.tensor_parallel_size == split
    assert parallel.distributed_executor_backend == ("mp" if split > 1 else "uni")
    assert config.scheduler_config.max_num_batched_tokens >= model.max_length
    assert config.cache_config.enable_prefix_caching


@pytest.mark.parametrize("name", all_configs())
def test_a_published_model_at_all_its_positions(
    name: str, folders: Mapping[str, Path], gpus: None
) -> None:
    path = str(folders[name])
    positions = positions_in(AutoConfig.from_pretrained(path))
    assert positions is not None
    # `auto`, which is all positions of a model that has few.
    model = Model(path=path, dtype="bfloat16", max_length="auto")
    assert model.max_length == min(positions, 8192)
    engine = EngineOptions(
        tensor_parallel_size=2, kv_cache_bytes=0, enforce_eager=False
    )
    rollout = Rollout(num_gpus=2, engine=engine)
    check(vllm_config(model, rollout), model, rollout)
    # vLLM counts positions as we do: it takes that many, and not one more.
    arguments = arguments_of(model, rollout)
    arguments["max_model_len"] = positions
    assert AsyncEngineArgs(**arguments).create_model_config()
    arguments["max_model_len"] = positions + 1
    with pytest.raises(ValueError, match="greater than the derived max_model_len"):
        AsyncEngineArgs(**arguments).create_model_config()


@pytest.mark.parametrize("preset", CLUSTER_PRESETS, ids=lambda path: path.stem)
def test_every_engine_of_a_preset(
    preset: Path, folders: Mapping[str, Path], gpus: None
) -> None:
    config = load_config(preset)
    engines = [config]
    for seat in judge_seats(config):
        engines.append(engine_config(config, seat.eye))
    for settings in engines:
        path = folders[Path(settings.model.path).name]
        model = settings.model.model_copy(update={"path": str(path)})
        made = vllm_config(model, settings.rollout)
        check(made, model, settings.rollout)
        assert not made.model_config.enforce_eager


def test_our_list_of_names_is_vllms() -> None:
    """Read off its source there, off its class here."""
    fields = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    public = {name for name in fields if not name.startswith("_")}
    assert argument_names() == public
    assert set(KEY_OF) | FIXED <= public


def test_a_table_goes_to_vllm_as_it_is(folders: Mapping[str, Path], gpus: None) -> None:
    path = str(folders["Qwen2.5-VL-7B-Instruct"])
    model = Model(path=path, dtype="bfloat16", max_length=4096)
    extra = {"mm_processor_cache_gb": 2, "mm_encoder_tp_mode": "data"}
    engine = EngineOptions(max_num_batched_tokens=3000, extra=extra)
    made = vllm_config(model, Rollout(num_gpus=1, engine=engine))
    assert made.scheduler_config.max_num_batched_tokens == 3000
    multimodal = made.model_config.multimodal_config
    assert multimodal.mm_processor_cache_gb == 2
    assert multimodal.mm_encoder_tp_mode == "data"
