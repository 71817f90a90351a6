"""What goes to the engine and what comes back is checked, without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import actors.engine_arguments
from actors.engine_arguments import engine_arguments
from actors.requests import PromptBuilder, to_group
from actors.vision_features import VisionFeatures
from common.chat import ChatEncoder
from common.config import Model, Rollout
from common.errors import Refused, UserError
from common.images import ImageStore
from common.protocols import GenerationRequest
from common.records import Dropped, RolloutGroup
from tests.tiny_models import make_prompt, tiny_llava


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(tiny_llava(), 256)


def test_a_sequence_that_is_not_the_processors_is_an_error(
    encoder: ChatEncoder, store: ImageStore
) -> None:
    """Each picture size is compared token by token once, then by its number of image tokens."""
    builder, prompt = (
        PromptBuilder(encoder, VisionFeatures(encoder, torch.float32)),
        make_prompt(store, 1),
    )
    whole = list(encoder.encode_prompt(prompt).token_ids)
    place = whole.index(encoder.image_token_id)
    fewer, other = whole[:place] + whole[place + 1 :], [whole[0] + 1, *whole[1:]]
    built = builder.build(prompt, ())
    for wrong, found in ((fewer, 63), (other, 64)):
        with pytest.raises(
            RuntimeError,
            match=rf"{prompt.id}: .* with 64 image tokens, got another one with {found}",
        ):
            builder.check(built, wrong)
    builder.check(built, whole)
    for wrong in (fewer, [*whole, 5]):
        with pytest.raises(RuntimeError, match="expected the processor's sequence"):
            builder.check(builder.build(prompt, ()), wrong)
    with pytest.raises(Refused, match="256"):
        builder.check(built, [5] * 257)


def output(token_ids: list[int], prompt_token_ids: list[int]) -> Any:
    versions = [SimpleNamespace(version="default"), SimpleNamespace(version="3")]
    one = SimpleNamespace(
        token_ids=token_ids, weight_versions=versions, finish_reason="stop", text=""
    )
    return SimpleNamespace(outputs=[one], prompt_token_ids=prompt_token_ids)


def test_an_answer_with_a_media_token_is_dropped(
    encoder: ChatEncoder, store: ImageStore
) -> None:
    request = GenerationRequest("g", make_prompt(store, 1), 1, 1.0, 8)
    image = encoder.image_token_id
    found = to_group(request, output([300, image, 301], [5, image]), encoder)
    assert isinstance(found, Dropped) and (found.id, found.reason) == (
        "g",
        "media_token",
    )
    good = to_group(request, output([300, 301], [5, image, image]), encoder)
    assert isinstance(good, RolloutGroup) and good.num_image_tokens == 2
    (answer,) = good.completions
    assert (answer.min_weight_version, answer.max_weight_version) == (0, 3), (
        "before the first push, and push 3"
    )


def test_the_cuda_build_without_a_gpu_says_what_to_do(
    encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = SimpleNamespace(is_cpu=lambda: False)
    monkeypatch.setattr(actors.engine_arguments, "current_platform", cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(
        UserError,
        match=r"rollout\.num_gpus: expected a GPU .* set rollout\.num_gpus = 1",
    ) as caught:
        engine_arguments(Model(path=str(tiny_llava())), Rollout(), encoder, 0)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "gpu_memory_utilization" in engine_arguments(
        Model(path=str(tiny_llava())), Rollout(), encoder, 0
    )
