"""Rows that processors, templates and embeddings refuse, and a tiny Qwen2.5-VL that refuses them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from common.data.images import ImageStore
from common.records import ImageRef, Message, Part, PreferencePair, Prompt, Response
from tests.tiny_families import tiny_qwen
from tests.tiny_models import picture

REASONS = {
    "aspect_ratio": "processor",
    "system_turn": "chat_template",
    "embedding": "token_unknown",
    "deleted_picture": "image_missing",
}
"""What can be wrong with a row, and the reason that it is counted under on every path."""

FAULTS = pytest.mark.parametrize("fault", REASONS)
UNHEARD = "zyxwv"
"""A token of the fussy model's tokenizer that its embedding has no row for."""

QUESTION = "Describe the image."
TRUE = "There is a red circle at the top. There is a blue star at the left."
WRONG = ("There is a ring.", "There is a blue square at the bottom.")

NUM_GOOD = 4

MIXED = r"\{'processor': 1, 'token_unknown': 1\}, such as processor \(aspect_ratio: "
"""What a message says of two bad pairs."""


def fussy_qwen(folder: Path) -> Path:
    """The tiny Qwen2.5-VL, with a template that refuses a system turn and a token beyond its embedding."""
    target = folder / "fussy_qwen"
    shutil.copytree(tiny_qwen(), target)
    template = target / "chat_template.jinja"
    refusal = (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% endfor %}"
    )
    template.write_text(refusal + template.read_text())
    config = json.loads((target / "config.json").read_text())
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    token = {
        "id": config["text_config"]["vocab_size"],
        "content": UNHEARD,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": False,
    }
    tokenizer["added_tokens"].append(token)
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    return target


def good_pair(store: ImageStore, number: int) -> PreferencePair:
    """A pair that every path takes; no two are alike."""
    image = store.add(picture(number, 160).resize((112, 84)))
    return _pair(f"good-{number}", (Message("user", _parts(QUESTION)),), image, number)


def bad_pair(store: ImageStore, fault: str) -> PreferencePair:
    """A pair with this fault. The picture of `deleted_picture` is there; `delete_picture` takes it away."""
    image = store.add(picture(99, 160).resize((112, 84)))
    messages = (Message("user", _parts(QUESTION)),)
    if fault == "aspect_ratio":
        image = store.add(Image.new("RGB", (1200, 4), "red"))
    if fault == "system_turn":
        messages = (Message("system", (Part("text", "Be brief."),)), *messages)
    if fault == "embedding":
        messages = (Message("user", _parts(f"Describe the {UNHEARD}.")),)
    return _pair("bad", messages, image, 0)


def good_pairs(store: ImageStore) -> list[PreferencePair]:
    return [good_pair(store, number) for number in range(NUM_GOOD)]


def with_bad(
    pairs: Sequence[PreferencePair], store: ImageStore, fault: str
) -> list[PreferencePair]:
    """The pairs with a bad one in their middle."""
    middle = len(pairs) // 2
    return [*pairs[:middle], bad_pair(store, fault), *pairs[middle:]]


def two_bad_pairs(store: ImageStore) -> list[PreferencePair]:
    """Nothing of them can be used, each for a reason of its own."""
    pairs = []
    for fault in ("aspect_ratio", "embedding"):
        pair = bad_pair(store, fault)
        prompt = replace(pair.prompt, id=fault)
        pairs.append(replace(pair, id=fault, prompt=prompt))
    return pairs


def delete_picture(images: Path, pair: PreferencePair) -> None:
    """Take a pair's picture out of a store, as somebody else would between import and use."""
    digest = pair.prompt.images[0].sha256
    (file,) = images.glob(f"*/{digest}.*")
    file.unlink()


def _parts(text: str) -> tuple[Part, ...]:
    return Part("image"), Part("text", text)


def _pair(
    id: str, messages: tuple[Message, ...], image: ImageRef, number: int
) -> PreferencePair:
    prompt = Prompt(id, messages, (image,), reference=TRUE)
    chosen, rejected = Response(TRUE), Response(WRONG[number % len(WRONG)])
    return PreferencePair(id, prompt, chosen, rejected, "test")
