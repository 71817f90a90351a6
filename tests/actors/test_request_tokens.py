"""Requests go through the chat encoder: its tokens, its ends, and what it refuses before vLLM sees it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from actors.bdhs.vision_features import VisionFeatures
from actors.engine.requests import PromptBuilder, sampling_params
from actors.engine.results import to_group
from common.chat import ChatEncoder
from common.data.images import ImageStore
from common.errors import Refused
from common.protocols import GenerationRequest
from common.records import Dropped, Message, Part, Prompt, RolloutGroup
from common.worlds.policy import CHAT_TEMPLATE
from tests.common.chat_models import (
    CHATML,
    conversation,
    copy_of,
    edit,
    put_around,
)
from tests.tiny_families import tiny_qwen
from tests.tiny_models import make_prompt, tiny_llava


def builder(encoder: ChatEncoder) -> PromptBuilder:
    return PromptBuilder(encoder, VisionFeatures(encoder, torch.float32))


def test_one_bos_reaches_the_engine(store: ImageStore, tmp_path: Path) -> None:
    folder = copy_of(tiny_llava(), tmp_path / "model", CHAT_TEMPLATE)
    put_around(folder, "<s>")
    encoder = ChatEncoder(folder, 256)
    prompt = make_prompt(store, 1)
    token_ids = builder(encoder).build(prompt, (7, 8)).payload["prompt_token_ids"]
    assert token_ids.count(encoder.tokenizer.bos_token_id) == 1
    assert token_ids == [*encoder.prompt_ids(prompt), 7, 8]


def test_written_tokens_reach_the_engine_as_text(store: ImageStore) -> None:
    encoder = ChatEncoder(tiny_llava(), 256)
    prompt = conversation(store, "What is </s>?")
    engine = builder(encoder)
    built = engine.build(prompt, ())
    assert encoder.eos_token_id not in built.payload["prompt_token_ids"]
    # As vLLM expands it: every image token becomes 64.
    expanded: list[int] = []
    for token in built.payload["prompt_token_ids"]:
        is_image = token == encoder.image_token_id
        expanded += [token] * (64 if is_image else 1)
    engine.check(built, expanded)


def test_an_end_that_vllm_leaves_in_a_text_is_no_part_of_it() -> None:
    """It takes tokens out of a text that are marked as special; not every end of a turn is."""
    encoder = ChatEncoder(tiny_llava(), 256)
    request = GenerationRequest("r", Prompt("p", (), ()), 1, 1.0, 8, stop=(".",))
    sequence = SimpleNamespace(
        token_ids=[9, 1],
        text=" a ring</s>",
        finish_reason="stop",
        weight_versions=[SimpleNamespace(version="3")],
        logprobs=None,
    )
    output = SimpleNamespace(outputs=[sequence], prompt_token_ids=[1])
    group = to_group(request, output, encoder)  # type: ignore[arg-type]
    assert isinstance(group, RolloutGroup)
    assert group.completions[0].text == " a ring"


def test_sampling_stops_at_the_templates_end(tmp_path: Path) -> None:
    folder = copy_of(
        tiny_llava(), tmp_path / "model", CHATML, ("<|im_start|>", "<|im_end|>")
    )
    encoder = ChatEncoder(folder, 256)
    request = GenerationRequest("g", Prompt("p", (), ()), 1, 1.0, 8)
    params = sampling_params(request, 8, (), encoder.extra_stop_token_ids)
    assert params.stop_token_ids == [encoder.eos_token_id]
    # What vLLM stops at by itself is not said twice.
    known = ChatEncoder(tiny_llava(), 256).extra_stop_token_ids
    assert sampling_params(request, 8, (), known).stop_token_ids == []


def test_a_row_that_the_processor_refuses_never_reaches_vllm(
    store: ImageStore,
) -> None:
    encoder = ChatEncoder(tiny_qwen(), 256)
    image = store.add(Image.new("RGB", (1200, 4), "red"))
    message = Message("user", (Part("image"), Part("text", "What is seen?")))
    with pytest.raises(Refused, match=r"absolute aspect ratio .* 200") as caught:
        builder(encoder).build(Prompt("p", (message,), (image,)), ())
    assert caught.value.reason == "processor"


def test_a_row_of_a_padded_embedding_is_no_answer(
    store: ImageStore, tmp_path: Path
) -> None:
    folder = copy_of(tiny_llava(), tmp_path / "model")

    def pad(content: dict[str, dict[str, int]]) -> None:
        content["text_config"]["vocab_size"] += 64

    edit(folder / "config.json", pad)
    encoder = ChatEncoder(folder, 256)
    num_tokens = len(encoder.tokenizer)
    request = GenerationRequest("g", make_prompt(store, 1), 1, 1.0, 8)
    for token, is_dropped in ((num_tokens, True), (num_tokens - 1, False)):
        sequence = SimpleNamespace(
            token_ids=[300, token],
            weight_versions=[SimpleNamespace(version="default")],
            finish_reason="length",
            text="",
            logprobs=None,
        )
        output = SimpleNamespace(outputs=[sequence], prompt_token_ids=[5])
        group = to_group(request, output, encoder)  # type: ignore[arg-type]
        assert isinstance(group, Dropped) == is_dropped
        if isinstance(group, Dropped):
            assert group.reason == "token_unknown"
