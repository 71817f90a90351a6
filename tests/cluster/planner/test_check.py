"""What cannot fit is refused before anything starts, with what would help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster import train
from cluster.planner import check
from cluster.planner.check import check_fits, dry_run, problems_of
from cluster.planner.gpu_kinds import GIB, kind_named
from cluster.planner.plan import plan_run
from cluster.planner.shape import Unplanned
from common.config import RunConfig
from common.errors import UserError
from tests.cluster.planner.model_configs import write


def config_of(folder: Path, **learner: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "cluster": {"gpu": "l40s"},
            "model": {"path": str(folder), "dtype": "bfloat16", "max_length": 4096},
            "rollout": {
                "num_gpus": 1,
                "max_tokens": 512,
                "engine": {"kv_cache_bytes": 0},
            },
            "mixture": {"online_fraction": 1.0},
            "learner": {"num_gpus": 1, "micro_batch": 1, **learner},
        }
    )


def test_full_tuning_of_7b_on_one_small_gpu_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(write("Qwen2.5-VL-7B-Instruct", tmp_path))
    with pytest.raises(UserError) as refused:
        check_fits(config)
    line = str(refused.value)
    assert line.startswith("learner: expected at most 45.0 GiB of every l40s, got")
    assert "most of it optimizer" in line
    assert "--model.tuning" in line and "\n" not in line
    out = tmp_path / "plan.json"
    with pytest.raises(UserError):
        dry_run(config, out)
    # The table comes all the same, and the file.
    assert "what would give memory" in capsys.readouterr().out
    plan = json.loads(out.read_text())
    assert plan["numel"] == 8_292_166_656
    assert plan["problems"][0].startswith("learner: expected at most 45.0 GiB")
    saved = [knob["saved"] for knob in plan["knobs"] if knob["role"] == "learner"]
    assert saved == sorted(saved, reverse=True) and saved


def test_an_engine_without_room_for_its_cache_is_refused(tmp_path: Path) -> None:
    config = config_of(write("Qwen2.5-VL-72B-Instruct", tmp_path))
    with pytest.raises(UserError, match=r"^rollout: expected"):
        check_fits(config)


def test_a_dry_run_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write("llava-v1.6-vicuna-7b-hf", tmp_path)
    judge = write("llava-v1.6-34b-hf", tmp_path)
    out = tmp_path / "plan.json"
    words = [
        "cluster/configs/llava16_7b_judged.toml",
        "--dry-run",
        "--out",
        str(out),
        "--model.path",
        str(folder),
        "--reward.judge.path",
        str(judge),
    ]
    assert train.main(words) == 0
    printed = capsys.readouterr().out
    for word in ("llava_next", "2 x rollout", "1 x judge 0", "4 x learner", "h100"):
        assert word in printed
    assert json.loads(out.read_text())["problems"] == []


def test_kinds_by_the_drivers_names() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA A100-SXM4-80GB": "a100-80",
        "NVIDIA H200": "h200",
        "NVIDIA L40S": "l40s",
    }
    for product, name in names.items():
        kind = kind_named(product)
        assert kind is not None and kind.name == name
    assert kind_named("NVIDIA A100-SXM4-40GB") is None
    assert kind_named("") is None


def test_more_tokens_than_positions_are_refused(tmp_path: Path) -> None:
    config = config_of(write("llava-v1.6-vicuna-7b-hf", tmp_path))
    model = config.model.model_copy(update={"max_length": 8192})
    with pytest.raises(UserError, match=r"at most 4096 positions .*, got 8192"):
        check_fits(config.model_copy(update={"model": model}))


def test_a_model_larger_than_this_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "machine_memory", lambda: 8.0 * GIB)
    folder = write("Qwen2.5-VL-7B-Instruct", tmp_path)
    values = {"model": {"path": str(folder)}, "mixture": {"online_fraction": 1.0}}
    with pytest.raises(UserError, match=r"^memory: expected at most 8.0 GiB"):
        check_fits(RunConfig.model_validate(values))


@pytest.mark.parametrize("background", [True, False])
def test_a_checkpoint_of_a_run_without_gpus_needs_ram(
    background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much as the actors take fits, and nothing beside: neither the copied state nor the gathered policy."""
    values = {
        "model": {"path": str(write("Qwen2.5-VL-7B-Instruct", tmp_path))},
        "mixture": {"online_fraction": 1.0},
        "checkpoint": {"background": background},
    }
    config = RunConfig.model_validate(values)
    plan = plan_run(config, None)
    actors = sum(seat.count * seat.device_bytes for seat in plan.seats)
    running = plan.nodes.shared_memory + actors
    monkeypatch.setattr(check, "machine_memory", lambda: running)
    (problem,) = problems_of(config, plan, ())
    assert f"expected at most {running / GIB:.1f} GiB" in problem
    # 4 bytes a weight; with the state 16.
    copied = 4 * plan.numel
    if background:
        copied += 12 * plan.trained_numel
    assert f"got {(running + copied) / GIB:.1f} GiB" in problem


def test_a_config_of_other_names_is_not_planned_but_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unplanned(*_: object) -> None:
        raise Unplanned("memory: expected a config whose sizes the planner knows")

    monkeypatch.setattr(check, "plan_run", unplanned)
    check_fits(config_of(write("Qwen2.5-VL-7B-Instruct", tmp_path)))
    assert "sizes the planner knows" in caplog.text


def test_gpus_of_an_unknown_kind_are_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "kind_of", lambda config: None)
    check_fits(config_of(write("Qwen2.5-VL-72B-Instruct", tmp_path)))
