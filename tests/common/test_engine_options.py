"""Settings of engines: what `extra` takes and refuses, GPUs of a split engine, lengths that are left to the model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.evaluate import config_of as evaluation_of
from cluster.generate import config_of as generation_of
from common.command_line.engine_arguments import argument_names
from common.config import EngineEye, EngineOptions, RunConfig
from common.config.overrides import load_config
from common.errors import UserError
from tests.cluster.planner.model_configs import write
from tests.tiny_models import TinyLlava, tiny_llava

ONLINE = "--mixture.online_fraction=1"


def configured(*words: str) -> RunConfig:
    return load_config(None, [ONLINE, *words])


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as refused:
        configured(*words)
    line = str(refused.value)
    assert "\n" not in line
    return line


# Any argument of vLLM's.


def test_any_argument_is_reached_from_a_file_and_a_command_line(tmp_path: Path) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text(
        "[mixture]\nonline_fraction = 1\n"
        "[rollout.engine.extra]\nmm_processor_cache_gb = 4\ndisable_cascade_attn = true\n"
    )
    words = [
        "--rollout.engine.extra.mm_processor_cache_gb=2",
        '--rollout.engine.extra.compilation_config={"mode": 3}',
    ]
    config = load_config(preset, words)
    extra = {
        "mm_processor_cache_gb": 2,
        "disable_cascade_attn": True,
        "compilation_config": {"mode": 3},
    }
    assert config.rollout.engine.extra == extra
    # As a run's config.json holds it.
    again = RunConfig.model_validate(json.loads(config.model_dump_json()))
    assert again == config
    judged = configured(
        "--reward.judge.kind=vlm",
        "--reward.judge.path=p",
        "--reward.judge.engine.extra.stream_interval=2",
    )
    eye: Any = judged.reward.judge
    assert eye.engine.extra == {"stream_interval": 2}


def test_engines_of_judges_are_told_apart_by_their_tables() -> None:
    eyes = []
    for interval in (1, 1, 2):
        engine = EngineOptions(extra={"stream_interval": interval})
        eyes.append(EngineEye(path="p", engine=engine))
    assert len(set(eyes)) == 2


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("mm_procesor_cache_gb=4", "did you mean mm_processor_cache_gb"),
        ("xyzzy=4", "got xyzzy; see vLLM's engine arguments"),
        ("max_model_len=4", "got max_model_len; set model.max_length"),
        ("kv_cache_memory_bytes=4", "set engine.kv_cache_bytes"),
        ("pipeline_parallel_size=2", "set engine.tensor_parallel_size"),
        ("async_scheduling=true", "set rollout.deterministic"),
        ("logprobs_mode=raw_logits", "leave it out"),
        ("trust_remote_code=true", "never run (safe by default)"),
        ("trust_remote_code=false", "never run (safe by default)"),
        ('hf_overrides={"trust_remote_code": true}', "never run"),
        ("worker_cls=a.B", "names code"),
        ("reasoning_parser_plugin=a.py", "names code"),
        ('kv_transfer_config={"kv_connector_module_path": "a"}', "names code"),
        ("load_format=pt", "leave it out"),
        ("hf_token=hf_abc", "set HF_TOKEN"),
        ("model_class_overrides={}", "names code"),
    ],
)
def test_what_extra_does_not_take(word: str, said: str) -> None:
    line = refusal(f"--rollout.engine.extra.{word}")
    assert line.startswith("rollout.engine.extra: expected")
    assert said in line
    assert "hf_abc" not in line


def test_vllms_names_are_read_without_importing_it() -> None:
    argument_names.cache_clear()
    started = time.perf_counter()
    names = argument_names()
    # An import takes seconds.
    assert time.perf_counter() - started < 2
    assert {"model", "max_model_len", "mm_processor_cache_gb"} <= names


# Devices and steps.


def test_an_engine_has_a_gpu_for_every_part() -> None:
    split = "--rollout.engine.tensor_parallel_size=4"
    assert configured(split, "--rollout.num_gpus=4")
    # Without GPUs its parts are processes on the CPU; one part may share a GPU.
    assert configured(split, "--rollout.num_gpus=0")
    assert configured("--rollout.num_gpus=0.5")
    for words in ([split, "--rollout.num_gpus=1"], ["--rollout.num_gpus=2"]):
        line = refusal(*words)
        assert "expected num_gpus = engine.tensor_parallel_size" in line
    judge = ["--reward.judge.kind=vlm", "--reward.judge.path=p"]
    line = refusal(*judge, "--reward.judge.num_gpus=2")
    assert line.startswith("reward.judge") and "got 2 and 1" in line


def test_a_step_holds_a_prompt_with_its_pictures() -> None:
    options = EngineOptions(max_num_seqs=4)
    # LLaVA-1.6's largest picture has 2,928 tokens; vLLM alone would take 2,048.
    assert options.tokens_per_step(4096, on_gpu=True) == 8192
    assert options.tokens_per_step(32_768, on_gpu=True) == 32_768
    assert options.tokens_per_step(512, on_gpu=False) == 4 * 512
    set_by_hand = EngineOptions(max_num_batched_tokens=3000)
    assert set_by_hand.tokens_per_step(4096, on_gpu=True) == 3000
    line = refusal("--rollout.engine.max_num_batched_tokens=8")
    assert "at least max_num_seqs, got 8 and 64" in line


# Lengths.


def test_auto_is_a_number_behind_the_config(tmp_path: Path) -> None:
    path = tiny_llava(TinyLlava(max_positions=128))
    words = [f"--model.path={path}", "--model.max_length=auto"]
    config = configured(*words)
    assert config.model.max_length == 128
    # So a resume compares numbers.
    assert json.loads(config.model_dump_json())["model"]["max_length"] == 128
    generated = generation_of(["bdhs", "--out", str(tmp_path), *words])
    assert generated.model.max_length == 128
    measured = evaluation_of(
        [str(path), "--model.max_length=auto", '--evaluation.suites=["shapes"]']
    )
    assert measured.model.max_length == 128
    judged = configured(
        "--reward.judge.kind=vlm",
        f"--reward.judge.path={path}",
        "--reward.judge.max_length=auto",
    )
    judge: Any = judged.reward.judge
    assert judge.max_length == 128


def test_auto_is_bounded_and_needs_a_model(tmp_path: Path) -> None:
    folder = write("Qwen2.5-VL-7B-Instruct", tmp_path)
    config = configured(f"--model.path={folder}", "--model.max_length=auto")
    assert config.model.max_length == 8192
    line = refusal(f"--model.path={tmp_path / 'none'}", "--model.max_length=auto")
    assert line.startswith("model.max_length: ")
    assert "config.json" in line
    assert "got 'automatic'" in refusal("--model.max_length=automatic")
