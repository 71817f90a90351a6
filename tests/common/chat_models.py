"""Model directories as people have them: copies of tiny ones with other templates and tokenizers, weights left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoProcessor

from common.chat import ChatEncoder
from common.data.images import ImageStore
from common.records import Message, Part, Prompt
from tests.tiny_families import tiny_llava_next, tiny_qwen, tiny_qwen3
from tests.tiny_models import picture, tiny_llava

FAMILIES: dict[str, Callable[[], Path]] = {
    "llava": tiny_llava,
    "llava_next": tiny_llava_next,
    "qwen2_5_vl": tiny_qwen,
    "qwen3_vl": tiny_qwen3,
}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAVA_HF = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% for part in m['content'] if part['type'] == 'image' %}IMAGE\n"
    "{% endfor %}{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""The template of llava-hf/llava-1.5: white space begins and ends an answer, no token does."""
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {% for part in m['content'] %}"
    "{{ part['text'] }}{% endfor %}{{ eos_token }}{% else %}[INST] {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} [/INST]{% endif %}"
    "{% endfor %}"
)
"""Its generation prompt is nothing, and rightly so: [/INST] stands in front of the answer."""


def image_text(source: Path) -> str:
    """What the family's templates write for an image."""
    config = json.loads((source / "config.json").read_text())
    if "vision_start_token_id" in config:
        return "<|vision_start|><|image_pad|><|vision_end|>"
    return "<image>"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def copy_of(
    source: Path, target: Path, template: str | None = None, tokens: Sequence[str] = ()
) -> Path:
    """A copy without weights; `IMAGE` in a template is the family's, and `tokens` are added with embeddings."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    if template is not None:
        text = template.replace("IMAGE", image_text(source))
        (target / "chat_template.jinja").write_text(text)
    if tokens:
        add_tokens(target, tokens)
    return target


def add_tokens(folder: Path, tokens: Sequence[str], has_embedding: bool = True) -> None:
    def add(tokenizer: dict[str, Any]) -> None:
        first = 1 + max(token["id"] for token in tokenizer["added_tokens"])
        first = max(first, 1 + max(tokenizer["model"]["vocab"].values()))
        for token_id, content in enumerate(tokens, start=first):
            flags = dict.fromkeys(
                ("single_word", "lstrip", "rstrip", "normalized"), False
            )
            entry = {"id": token_id, "content": content, "special": True, **flags}
            tokenizer["added_tokens"].append(entry)

    def grow(config: dict[str, Any]) -> None:
        config["text_config"]["vocab_size"] += len(tokens)

    edit(folder / "tokenizer.json", add)
    if has_embedding:
        edit(folder / "config.json", grow)


def put_around(folder: Path, first: str | None, last: str | None = None) -> None:
    """Let the tokenizer put these tokens around every text, as Llama's and Gemma's put BOS in front."""

    def change(tokenizer: dict[str, Any]) -> None:
        ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        single: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
        if first:
            single.insert(0, {"SpecialToken": {"id": first, "type_id": 0}})
        if last:
            single.append({"SpecialToken": {"id": last, "type_id": 0}})
        special = {}
        for token in filter(None, (first, last)):
            special[token] = {"id": token, "ids": [ids[token]], "tokens": [token]}
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": special,
        }

    edit(folder / "tokenizer.json", change)


def conversation(store: ImageStore, *texts: str, system: str | None = None) -> Prompt:
    """Turns of user and assistant in alternation, the first with a picture."""
    messages = [Message("system", (Part("text", system),))] if system else []
    for number, text in enumerate(texts):
        image = (Part("image"),) if number == 0 else ()
        parts = (*image, Part("text", text))
        messages.append(Message("assistant" if number % 2 else "user", parts))
    return Prompt("p", tuple(messages), (store.add(picture(3, side=64)),))


def transformers_ids(
    folder: Path, prompt: Prompt, answer: str | None = None
) -> list[int]:
    """What a program without sightline makes of the conversation, and of an answer to it."""
    processor = AutoProcessor.from_pretrained(folder)
    images = [Image.open(image.path).convert("RGB") for image in prompt.images]
    messages: list[dict[str, Any]] = []
    for message in prompt.messages:
        content: list[dict[str, Any]] = []
        for part in message.parts:
            if part.kind == "image":
                content.append({"type": "image", "image": images.pop(0)})
            else:
                content.append({"type": "text", "text": part.text})
        messages.append({"role": message.role, "content": content})
    if answer is not None:
        text = {"type": "text", "text": answer}
        messages.append({"role": "assistant", "content": [text]})
    encoding = processor.apply_chat_template(
        messages,
        tokenize=True,
        add_generation_prompt=answer is None,
        return_dict=True,
    )
    return list(encoding["input_ids"][0])


def unexpanded(encoder: ChatEncoder, token_ids: Sequence[int]) -> list[int]:
    """One image token in the place of every run of them."""
    image = encoder.image_token_id
    kept = []
    for number, token in enumerate(token_ids):
        if token != image or token_ids[number - 1] != image:
            kept.append(token)
    return kept
