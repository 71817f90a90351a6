"""Model directories as people have them: read, completed from the model's configuration, or refused in one line."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from common.chat import ChatEncoder, check_model, encoder_of
from common.config import SHAPES_POLICY, Model
from common.data.images import ImageStore
from common.errors import UserError
from common.worlds.policy import CHAT_TEMPLATE
from tests.common.chat_models import (
    FAMILIES,
    MISTRAL,
    add_tokens,
    conversation,
    copy_of,
    edit,
    put_around,
)
from tests.tiny_models import tiny_llava

STRINGS = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'].upper() + ': ' + m['content'].strip() + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
WITHOUT_GENERATION_PROMPT = CHAT_TEMPLATE.partition("{% if add_generation_prompt")[0]
OTHER_TEMPLATE = CHAT_TEMPLATE.replace("USER: ", "HUMAN: ")
LLAVA_FIELDS = (
    "patch_size",
    "vision_feature_select_strategy",
    "num_additional_image_tokens",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_of(tiny_llava(), tmp_path / "model")


def refusal(folder: Path, chat_template: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        ChatEncoder(folder, 512, chat_template)
    message = str(caught.value)
    assert "\n" not in message
    return message


def without_fields(folder: Path, *fields: str) -> None:
    def change(content: dict[str, object]) -> None:
        for name in fields:
            del content[name]

    edit(folder / "processor_config.json", change)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("missing", [LLAVA_FIELDS, LLAVA_FIELDS[2:]])
def test_fields_that_older_exports_lack_are_the_models(
    family: str, missing: tuple[str, ...], store: ImageStore, tmp_path: Path
) -> None:
    source = FAMILIES[family]()
    folder = copy_of(source, tmp_path / "model")
    without_fields(folder, *missing)
    encoder = ChatEncoder(folder, 512)
    assert len(encoder.warnings) == len(missing)
    prompt = conversation(store, "What is seen?")
    expected = ChatEncoder(source, 512).encode_prompt(prompt)
    assert encoder.encode_prompt(prompt).token_ids == expected.token_ids
    # A checkpoint of this processor is complete.
    encoder.processor.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert set(LLAVA_FIELDS) <= set(saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", 16),
        ("vision_feature_select_strategy", "full"),
        ("num_additional_image_tokens", 0),
    ],
)
def test_fields_that_the_model_contradicts_are_refused(
    name: str, value: object, folder: Path
) -> None:
    edit(
        folder / "processor_config.json", lambda content: content.update({name: value})
    )
    message = refusal(folder)
    assert name in message and "correct processor_config.json" in message


def test_images_of_another_size_than_the_models_are_refused(folder: Path) -> None:
    side = {"height": 32, "width": 32}

    def change(content: dict[str, dict[str, object]]) -> None:
        content["image_processor"].update(size=side, crop_size=side)

    edit(folder / "processor_config.json", change)
    assert "expected images of 64 pixels" in refusal(folder)


def test_image_tokens_are_counted_against_the_model(tmp_path: Path) -> None:
    """Qwen merges 2 x 2 patches to a token; a processor that merges none writes four times as many."""
    folder = copy_of(FAMILIES["qwen2_5_vl"](), tmp_path / "model")
    edit(
        folder / "config.json",
        lambda content: content["vision_config"].update(spatial_merge_size=1),
    )
    message = refusal(folder)
    # 64 pixels are 56 for patches of 14 in twos: 4 x 4 patches, 2 x 2 tokens.
    assert "expected 16 image tokens" in message and "got 4 from" in message


def tokenizer_alone(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit(
        folder / "tokenizer_config.json",
        lambda content: content.update(chat_template=template),
    )


def legacy_file(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    content = json.dumps({"chat_template": template})
    (folder / "chat_template.json").write_text(content)


@pytest.mark.parametrize("move", [tokenizer_alone, legacy_file])
def test_a_template_is_read_wherever_it_stands(
    move: Callable[[Path], None], folder: Path, store: ImageStore
) -> None:
    prompt = conversation(store, "What is seen?")
    expected = ChatEncoder(folder, 512).prompt_ids(prompt)
    move(folder)
    assert ChatEncoder(folder, 512).prompt_ids(prompt) == expected


def test_without_a_template_one_is_asked_for_and_taken(
    folder: Path, store: ImageStore, tmp_path: Path
) -> None:
    prompt = conversation(store, "What is seen?")
    expected = ChatEncoder(folder, 512).prompt_ids(prompt)
    (folder / "chat_template.jinja").unlink()
    assert "give one with model.chat_template" in refusal(folder)
    file = tmp_path / "given.jinja"
    file.write_text(CHAT_TEMPLATE)
    for given in (CHAT_TEMPLATE, str(file)):
        encoder = ChatEncoder(folder, 512, given)
        assert encoder.prompt_ids(prompt) == expected
    # A checkpoint brings it along.
    encoder.processor.save_pretrained(folder)
    assert ChatEncoder(folder, 512).prompt_ids(prompt) == expected
    file.write_text("no template")
    for wrong in (str(file), str(tmp_path / "nowhere.jinja")):
        assert refusal(folder, wrong).startswith("model.chat_template: expected")


def test_a_given_template_replaces_the_models(folder: Path, store: ImageStore) -> None:
    encoder = encoder_of(Model(path=str(folder), chat_template=OTHER_TEMPLATE))
    text = encoder.prompt_text(conversation(store, "What is seen?"))
    assert text == "<s>HUMAN: <image>\nWhat is seen? ASSISTANT:\n"


def test_a_template_for_strings_gets_strings(store: ImageStore, tmp_path: Path) -> None:
    for family, image in (("llava", "<image>"), ("qwen3_vl", "<|image_pad|>")):
        folder = copy_of(FAMILIES[family](), tmp_path / family, STRINGS)
        encoder = ChatEncoder(folder, 512)
        prompt = conversation(store, "What is seen?", "A star.", "And now?")
        text = encoder.prompt_text(prompt)
        first, *_ = text.partition("\nWhat is seen?")
        assert first.startswith("<s>USER: <") and first.count(image) == 1
        assert text.endswith(
            "What is seen? ASSISTANT: A star. USER: And now? ASSISTANT:"
        )
        encoded = encoder.encode_prompt(prompt)
        assert encoded.token_ids.count(0) == 1
        assert encoded.num_image_tokens > 1


@pytest.mark.parametrize("template", ["{{ 'Hello' }}", "{{ messages[7]['role'].x }}"])
def test_a_template_that_loses_the_question_is_refused(
    template: str, tmp_path: Path
) -> None:
    folder = copy_of(tiny_llava(), tmp_path / "model", template)
    message = refusal(folder)
    assert "expected a chat template that writes a question and one <image>" in message


def test_a_template_without_a_generation_prompt_is_said_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of(tiny_llava(), tmp_path / "model", WITHOUT_GENERATION_PROMPT)
    shutil.copy(tiny_llava() / "model.safetensors", folder)
    with caplog.at_level(logging.WARNING, "sightline"):
        check_model(Model(path=str(folder)))
    (record,) = caplog.records
    assert "NO GENERATION PROMPT" in record.getMessage()
    assert "chat_template.jinja" in record.getMessage()
    # Not where the question's end is all that an answer needs in front.
    folder = copy_of(
        tiny_llava(), tmp_path / "mistral", MISTRAL.replace("IMAGE", "<image>")
    )
    assert ChatEncoder(folder, 512).warnings == []


def test_a_tokenizer_without_eos_gets_the_models(
    folder: Path, store: ImageStore
) -> None:
    prompt = conversation(store, "What is seen?", "A star.", "And now?")
    expected = ChatEncoder(folder, 512)
    edit(folder / "tokenizer_config.json", lambda content: content.pop("eos_token"))
    encoder = ChatEncoder(folder, 512)
    assert len(encoder.warnings) == 1
    assert encoder.prompt_ids(prompt) == expected.prompt_ids(prompt)
    assert encoder.encode_response("A.") == expected.encode_response("A.")
    edit(folder / "generation_config.json", lambda content: content.pop("eos_token_id"))

    def change(content: dict[str, dict[str, object]]) -> None:
        content["text_config"].update(eos_token_id=None)

    edit(folder / "config.json", change)
    assert "set eos_token in tokenizer_config.json" in refusal(folder)


def test_a_tokenizer_that_ends_every_text_is_refused(tmp_path: Path) -> None:
    template = CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    folder = copy_of(tiny_llava(), tmp_path / "model", template)
    put_around(folder, "<s>", "</s>")
    assert "puts </s> behind it" in refusal(folder)


def test_tokens_without_an_embedding(folder: Path) -> None:
    """Unused ones are said; what the template writes must have one."""
    add_tokens(folder, ["<|im_end|>"], has_embedding=False)
    (warning,) = ChatEncoder(folder, 512).warnings
    assert "1 tokens beyond the embedding's" in warning and "<|im_end|>" in warning
    template = folder / "chat_template.jinja"
    template.write_text(CHAT_TEMPLATE.replace("eos_token", "'<|im_end|>'"))
    assert "without <|im_end|>" in refusal(folder)


def test_a_padded_embedding_is_no_fault(folder: Path) -> None:
    def pad(content: dict[str, dict[str, int]]) -> None:
        content["text_config"]["vocab_size"] += 64

    edit(folder / "config.json", pad)
    assert ChatEncoder(folder, 512).warnings == []


def test_an_adapter_is_named_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    message = refusal(folder)
    assert "got an adapter (adapter_config.json of org/base): merge it" in message


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_an_lfs_pointer_is_named_as_one(name: str, folder: Path) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 1\n")
    assert f"a Git LFS pointer in place of {name}" in refusal(folder)


def whole_refusal(folder: Path, **settings: Any) -> str:
    """What the controller says of a directory with weights."""
    with pytest.raises(UserError) as caught:
        check_model(Model(path=str(folder), **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_that_are_not_all_there(folder: Path) -> None:
    assert "expected *.safetensors, got none; convert" in whole_refusal(folder)
    (folder / "pytorch_model.bin").touch()
    assert "got pytorch_model.bin; convert" in whole_refusal(folder)
    shutil.copy(tiny_llava() / "model.safetensors", folder / "part-1.safetensors")
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = whole_refusal(folder)
    assert "without 1 of them (part-2.safetensors); copy" in message


def test_an_embedding_of_another_size_than_the_configurations(folder: Path) -> None:
    shutil.copy(tiny_llava() / "model.safetensors", folder)
    assert check_model(Model(path=str(folder))).warnings == []

    def grow(content: dict[str, dict[str, int]]) -> None:
        content["text_config"]["vocab_size"] += 64

    edit(folder / "config.json", grow)
    message = whole_refusal(folder)
    assert "expected an embedding of vocab_size = " in message
    assert "correct vocab_size in config.json" in message


def test_a_length_that_the_model_has_no_positions_for(folder: Path) -> None:
    shutil.copy(tiny_llava() / "model.safetensors", folder)

    def shrink(content: dict[str, dict[str, int]]) -> None:
        content["text_config"]["max_position_embeddings"] = 256

    edit(folder / "config.json", shrink)
    message = whole_refusal(folder, max_length=257)
    assert "at most the 256 positions" in message
    assert "set model.max_length = 256" in message
    assert check_model(Model(path=str(folder), max_length=256)).warnings == []


def test_weights_as_transformers_names_them_when_it_saves(folder: Path) -> None:
    """`save_pretrained` of transformers 5 leaves a level out of the tower's names; engines put it in as they read."""
    weights = load_file(tiny_llava() / "model.safetensors")
    renamed = {}
    for name, value in weights.items():
        renamed[name.replace("vision_tower.vision_model.", "vision_tower.")] = value
    save_file(renamed, folder / "model.safetensors")
    assert check_model(Model(path=str(folder), max_length=512)).warnings == []


@pytest.mark.parametrize("token_id", [5, 50_000])
def test_an_image_token_that_is_not_the_processors(token_id: int, folder: Path) -> None:
    edit(
        folder / "config.json",
        lambda content: content.update(
            image_token_index=token_id, image_token_id=token_id
        ),
    )
    message = refusal(folder)
    assert f"got id {token_id}" in message and "<image> of the processor" in message


def test_a_language_model_is_refused(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    (folder / "config.json").write_text(json.dumps(text))
    assert "expected a vision-language model, got llama" in refusal(folder)


def test_the_shapes_policy_has_nothing_to_complete(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(SHAPES_POLICY, folder)
    assert check_model(Model(), folder).warnings == []
