"""Model folders that no run can use: every command says so in one line, before Ray is asked for anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster import doctor, evaluate, generate, train
from common.chat import check_model
from common.config import Model
from tests.cluster.model_commands import evaluate_words, generate_words, train_words
from tests.common.chat_models import edit
from tests.tiny_families import tiny_qwen
from tests.tiny_models import tiny_llava

Change = Callable[[Path], Any]
GGUF = b"GGUF\x03\0\0\0" + b"\0" * 100
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 380,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
}
TRAP = "raise SystemExit('code of a model folder was run')"


def config(**changes: Any) -> Change:
    """Changes fields of config.json."""
    return lambda folder: edit(folder / "config.json", lambda c: c.update(changes))


def processor(**changes: Any) -> Change:
    """Changes fields of processor_config.json."""
    file = "processor_config.json"
    return lambda folder: edit(folder / file, lambda c: c.update(changes))


def adapter(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    content = {"peft_type": "LORA", "base_model_name_or_path": "llava-hf/base"}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    save_file({"x": torch.zeros(2)}, folder / "adapter_model.safetensors")


def gguf(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model-q4.gguf").write_bytes(GGUF)


def text_only(folder: Path) -> None:
    edit(folder / "config.json", lambda c: (c.clear(), c.update(LLAMA)))


def tokenizer_of_another(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_qwen() / name, folder / name)


def smaller_tokenizer(folder: Path) -> None:
    """The model is one of more tokens, so its embedding is larger."""

    def enlarge(content: dict[str, Any]) -> None:
        content["text_config"]["vocab_size"] *= 2

    edit(folder / "config.json", enlarge)


def larger_tokenizer(folder: Path) -> None:
    """All that the model needs has a low id, as in tokenizers of SentencePiece; most tokens have no embedding."""

    def enlarge(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        for number in range(500):
            vocab[f"word{number}"] = len(vocab)

    edit(folder / "tokenizer.json", enlarge)


def short_context(folder: Path) -> None:
    def shorten(content: dict[str, Any]) -> None:
        content["text_config"]["max_position_embeddings"] = 48

    edit(folder / "config.json", shorten)


def unknown_image_processor(folder: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["image_processor"]["image_processor_type"] = "FutureImageProcessor"

    edit(folder / "processor_config.json", rename)


def missing_shard(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    first = "model-00001-of-00002.safetensors"
    save_file(weights, folder / first, metadata={"format": "pt"})
    names = dict.fromkeys(weights, first)
    names[next(iter(names))] = "model-00002-of-00002.safetensors"
    index = json.dumps({"metadata": {}, "weight_map": names})
    (folder / "model.safetensors.index.json").write_text(index)


def remote_model(folder: Path) -> None:
    config(model_type="internvl_chat", auto_map={"AutoConfig": "own.Config"})(folder)
    (folder / "own.py").write_text(TRAP)


def remote_processor(folder: Path) -> None:
    code = {"AutoProcessor": "own.Processor"}
    processor(processor_class="OwnProcessor", auto_map=code)(folder)
    (folder / "own.py").write_text(TRAP)


BAD: dict[str, tuple[Change, str]] = {
    "a LoRA adapter": (adapter, "got an adapter (adapter_config.json of llava-hf/base"),
    "a GGUF": (gguf, "got GGUF weights (model-q4.gguf)"),
    "a text-only model": (text_only, "expected a vision-language model, got llama"),
    "another tokenizer": (tokenizer_of_another, "copy the model's own tokenizer files"),
    "a smaller tokenizer": (smaller_tokenizer, "tokenizer that the weights were"),
    "a larger tokenizer": (larger_tokenizer, "tokenizer that the weights were"),
    "a short context": (short_context, "got max_position_embeddings = 48"),
    "an image processor of the future": (
        unknown_image_processor,
        "image_processor_type = FutureImageProcessor in processor_config.json",
    ),
    "a processor of the future": (
        processor(processor_class="FutureProcessor"),
        "processor_class = FutureProcessor in processor_config.json",
    ),
    "a family of the future": (
        config(model_type="llava_future", transformers_version="6.1.0"),
        "got llava_future written by transformers 6.1.0",
    ),
    "a shard that is not there": (missing_shard, "without 1 of them (model-00002"),
    "code of its own": (remote_model, "own.Config), which is never run"),
    "a processor with code of its own": (remote_processor, "which is never run"),
    "an architecture that vLLM lacks": (
        config(architectures=["FutureForConditionalGeneration"]),
        "that the installed vLLM runs, got FutureForConditionalGeneration",
    ),
    "no architecture": (config(architectures=None), "expected architectures in config"),
}
COMMANDS: dict[str, tuple[Callable[[list[str]], int], Callable[..., list[str]]]] = {
    "dry run": (train.main, lambda *paths: ["--dry-run", *train_words(*paths)]),
    "train": (train.main, train_words),
    "evaluate": (evaluate.main, evaluate_words),
    "generate": (generate.main, generate_words),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "model"
    shutil.copytree(tiny_llava(), target)
    return target


@pytest.mark.parametrize("name", BAD)
def test_every_command_says_it_in_one_line(
    name: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, said = BAD[name]
    spoil(folder)
    for command, (main, words) in COMMANDS.items():
        assert main(words(folder, tmp_path / command)) == 2, command
        lines = capfd.readouterr().err.strip().splitlines()
        (error,) = [line for line in lines if line.startswith("error:")]
        assert lines[-1] == error, command
        assert said in error, command
        assert "; " in error or ": merge" in error, "it says what to do"
        assert "Traceback" not in "".join(lines)


@pytest.mark.parametrize("name", sorted(set(BAD) - {"a short context"}))
def test_the_doctor_finds_it_as_well(name: str, folder: Path) -> None:
    spoil, said = BAD[name]
    spoil(folder)
    (finding,) = doctor.check_model(Model(path=str(folder)))
    assert finding.is_fatal
    assert said in f"{finding.state}; {finding.remedy}"


def test_the_doctors_command_shows_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gguf(folder)
    assert doctor.main(["--quick", "--json", "--model.path", str(folder)]) == 1
    assert "got GGUF weights (model-q4.gguf)" in capsys.readouterr().out


def test_marks_of_another_template_are_said(folder: Path) -> None:
    """Its turns end with a mark that this tokenizer spells, so an answer would never end there."""
    template = folder / "chat_template.jinja"
    marked = template.read_text().replace("USER: ", "<|im_start|>user ")
    template.write_text(marked)
    (warning,) = check_model(Model(path=str(folder))).warnings
    assert "writes <|im_start|>, which the tokenizer has no token for" in warning
