"""What sightline leaves behind is used by others alone, with the code of docs/howto/use_the_policy.md."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.learner_step import RANK_VARIABLES
from cluster.import_data import main as import_data
from common.data.datasets import write_pairs
from common.data.images import ImageStore, read
from common.metrics import read_lines
from tests.cluster import runs
from tests.docs.pages import DOCS, block_with
from tests.learner.helpers import LORA, make_pairs, run_config, started, train, written
from tests.tiny_models import picture, tiny_llava

PAGE = DOCS / "howto" / "use_the_policy.md"
ON_CPU = (
    "use_cpu=True, bf16=False, gradient_checkpointing=False, learning_rate=1e-3, logging_steps=1, "
    "report_to='none', save_strategy='no', disable_tqdm=True"
)


def code_of(word: str, names: Mapping[str, object]) -> str:
    """The page's code that holds a word, with paths of this test in the place of the page's."""
    text = block_with(PAGE, word).text
    for name, value in names.items():
        assert name in text, name
        text = text.replace(name, str(value))
    return text


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA policy after two steps, as a run leaves it: merged, with its adapter."""
    folder = tmp_path_factory.mktemp("exported")
    trainer = started(run_config(tuning=LORA))
    pairs = make_pairs(ImageStore(folder / "images"), 6)
    train(trainer, [pairs] * 2)
    trainer.export(folder / "policy")
    written(trainer)
    picture(3).save(folder / "a.png")
    return folder


def test_transformers_alone_answers_with_it(exported: Path) -> None:
    paths = {
        "runs/demo/policy": exported / "policy",
        "a.png": exported / "a.png",
    }
    code = code_of("model.generate", paths)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    prompt_length = names["inputs"]["input_ids"].shape[1]
    assert names["ids"].shape[1] > prompt_length


def test_peft_alone_puts_the_adapter_on_the_start_policy(exported: Path) -> None:
    """Base and adapter give what the merged policy gives; the base alone does not."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    paths = {"START_POLICY": tiny_llava(), "runs/lora/policy": exported / "policy"}
    names: dict[str, Any] = {}
    exec(compile(code_of("PeftModel", paths), str(PAGE), "exec"), names)
    processor = AutoProcessor.from_pretrained(exported / "policy")
    text = f"{processor.image_token} There is a red circle."
    image = Image.open(exported / "a.png")
    inputs = processor(text=text, images=image, return_tensors="pt")
    merged = AutoModelForImageTextToText.from_pretrained(exported / "policy")
    start = AutoModelForImageTextToText.from_pretrained(tiny_llava())
    with torch.no_grad():
        with_adapter = names["model"](**inputs).logits
        torch.testing.assert_close(
            with_adapter, merged(**inputs).logits, atol=1e-3, rtol=1e-3
        )
        assert (with_adapter - start(**inputs).logits).abs().max() > 1e-3


def test_trl_trains_on_exported_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its DPOTrainer takes three steps with pictures, and changes the policy."""
    monkeypatch.chdir(tmp_path)
    for name in RANK_VARIABLES:
        # Of a learner of this process: TRL would look for the other ranks.
        monkeypatch.delenv(name, raising=False)
    write_pairs(tmp_path / "set", make_pairs(ImageStore(tmp_path / "set/images"), 8))
    assert import_data(["export", str(tmp_path / "set"), "--out", "trl"]) == 0
    code = code_of(
        "DPOTrainer",
        {
            "data/bdhs-trl": "trl",
            "START_POLICY": tiny_llava(),
            "max_steps=3": f"max_steps=3, {ON_CPU}",
            'split="train"': f'split="train", cache_dir="{tmp_path}/cache"',
        },
    )
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    trainer = names["trainer"]
    assert trainer.state.global_step == 3
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    # At first the policy is its own reference: -log σ(0).
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    # Then it has moved; the batches are too small to say whereto.
    assert abs(losses[-1] - losses[0]) > 0.01


def test_tensorboards_reader_opens_the_log(tmp_path: Path) -> None:
    """Its curves are the figures of metrics.jsonl."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, run_dir = runs.run(runs.make_config(tmp_path))
    log = EventAccumulator(str(run_dir / "tensorboard"))
    log.Reload()
    lines = read_lines(run_dir / "metrics.jsonl")
    for name in ("loss", "staleness/mean"):
        points = {event.step: event.value for event in log.Scalars(name)}
        assert points == pytest.approx(
            {int(line["step"]): line[name] for line in lines}
        )


def test_pairs_of_a_run_are_a_set_like_any_other(tmp_path: Path) -> None:
    """Online pairs go to TRL as well, with their pictures."""
    from datasets import load_dataset

    _, run_dir = runs.run(runs.make_config(tmp_path))
    out = tmp_path / "trl"
    assert import_data(["export", str(run_dir / "pairs"), "--out", str(out)]) == 0
    rows = load_dataset(
        "parquet",
        data_files=str(out / "train.parquet"),
        cache_dir=str(tmp_path / "cache"),
        split="train",
    )
    stats = json.loads((out / "stats.json").read_text())
    assert len(rows) == stats["num_pairs"] > 0
    assert rows[0]["images"][0].size == read_first(run_dir).size


def read_first(run_dir: Path) -> Image.Image:
    from common.data.datasets import read_pairs

    return read(read_pairs(run_dir / "pairs")[0].prompt.images[0])
