from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.chat import ChatEncoder, EncodedPrompt
from common.data.images import ImageStore
from common.records import (
    Dropped,
    ImageRef,
    Message,
    Part,
    PreferencePair,
    Prompt,
    Response,
)
from common.sources import RLOO
from learner.batch.collate import Collator, EncodedPair, PromptCache
from learner.batch.encoded import rows_of
from tests.common.chat_models import copy_of, edit
from tests.learner.helpers import encoded, make_pairs, text_prompt
from tests.tiny_families import tiny_qwen
from tests.tiny_models import tiny_llava


def refusal(collator: Collator, pair: PreferencePair) -> str:
    encoded = collator.encode(pair)
    assert isinstance(encoded, Dropped)
    assert encoded.id == pair.id
    return encoded.reason


def test_rows(collator: Collator, store: ImageStore) -> None:
    pairs = encoded(collator, make_pairs(store, 3))
    batch = collator.collate(pairs)
    assert batch.input_ids.shape[0] == 6
    assert batch.media["pixel_values"].shape[0] == 6
    for row, (pair, response) in enumerate(rows_of(pairs)):
        length = len(pair.prompt.token_ids) + len(response)
        assert batch.input_ids[row, :length].tolist() == [
            *pair.prompt.token_ids,
            *response,
        ]
        assert batch.attention_mask[row].sum() == length
        assert batch.input_ids[row][batch.response_mask[row]].tolist() == list(response)
        assert torch.equal(
            batch.media["pixel_values"][row],
            pair.prompt.model_inputs["pixel_values"][0],
        )


def test_sampled_tokens_travel_and_text_is_encoded(
    collator: Collator,
    store: ImageStore,
) -> None:
    (pair,) = make_pairs(store, 1)
    tokens = (9, 8, 7)
    sampled = replace(pair, chosen=Response("anything", tokens))
    (result,) = encoded(collator, [sampled])
    assert result.chosen == tokens
    assert result.rejected == collator.encoder.encode_response(pair.rejected.text)
    assert result.rejected[-1] == collator.encoder.eos_token_id


def test_the_engines_prompt_must_be_ours(collator: Collator, store: ImageStore) -> None:
    (pair,) = make_pairs(store, 1)
    (result,) = encoded(collator, [pair])
    prompt_ids = result.prompt.token_ids
    encoded(collator, [replace(pair, prompt_token_ids=prompt_ids)])
    with pytest.raises(AssertionError, match="share one processor"):
        collator.encode(replace(pair, prompt_token_ids=prompt_ids[1:]))


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_bad_responses(collator: Collator, store: ImageStore, side: str) -> None:
    (pair,) = make_pairs(store, 1)
    image_token, eos = collator.encoder.image_token_id, collator.encoder.eos_token_id

    def with_tokens(*tokens: int) -> PreferencePair:
        return replace(pair, **{side: Response("", tokens)})

    assert refusal(collator, with_tokens()) == "response_empty"
    assert refusal(collator, with_tokens(eos)) == "response_empty"
    assert refusal(collator, replace(pair, **{side: Response("")})) == "response_empty"
    assert refusal(collator, with_tokens(5, image_token, eos)) == "response_media"
    assert refusal(collator, with_tokens(*[5] * 300)) == "pair_too_long"


def test_the_limit_is_exact(collator: Collator, store: ImageStore) -> None:
    (pair,) = make_pairs(store, 1)
    room = 256 - len(encoded(collator, [pair])[0].prompt.token_ids)
    encoded(collator, [replace(pair, chosen=Response("", (5,) * room))])
    assert (
        refusal(collator, replace(pair, chosen=Response("", (5,) * (room + 1))))
        == "pair_too_long"
    )


def test_identical_sides(collator: Collator, store: ImageStore) -> None:
    (pair,) = make_pairs(store, 1)
    assert refusal(collator, replace(pair, rejected=pair.chosen)) == "pair_identical"


def test_sides_that_differ_by_their_end_alone(
    store: ImageStore, tmp_path: Path
) -> None:
    """One answer was cut off before its end, or ended by another of the model's ends."""
    folder = copy_of(tiny_llava(), tmp_path / "model")
    edit(folder / "generation_config.json", lambda c: c.update(eos_token_id=[1, 2]))
    collator = Collator(ChatEncoder(folder, 256))
    assert collator.encoder.stop_token_ids == (1, 2)
    (pair,) = make_pairs(store, 1)
    for other in ((9, 8), (9, 8, 2)):
        sides = {"chosen": Response("a", (9, 8, 1)), "rejected": Response("b", other)}
        assert refusal(collator, replace(pair, **sides)) == "pair_identical"
        equal_allowed = replace(pair, **sides, source=RLOO)
        assert isinstance(collator.encode(equal_allowed), EncodedPair)


def test_bad_prompts(collator: Collator, store: ImageStore, tmp_path: Path) -> None:
    (pair,) = make_pairs(store, 1)
    gone = ImageRef("0" * 64, str(tmp_path / "gone.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    other = ImageRef("0" * 64, str(broken))
    for images, reason in (
        ((gone,), "image_missing"),
        ((other,), "image_changed"),
        ((), "image_count"),
    ):
        assert (
            refusal(collator, replace(pair, prompt=replace(pair.prompt, images=images)))
            == reason
        )
    long = text_prompt("There is a red circle. " * 100)
    assert refusal(collator, replace(pair, prompt=long)) == "prompt_too_long"


@pytest.mark.parametrize(
    ("path", "token"),
    [
        (tiny_llava, "<image>"),
        (tiny_qwen, "<|image_pad|>"),
        (tiny_qwen, "<|video_pad|>"),
    ],
)
def test_texts_that_spell_a_media_token(
    store: ImageStore,
    path: Callable[[], Path],
    token: str,
) -> None:
    collator = Collator(ChatEncoder(path(), 256))
    pair = replace(
        make_pairs(store, 1)[0],
        chosen=Response("A square."),
        rejected=Response("A circle."),
    )
    assert isinstance(collator.encode(pair), EncodedPair)
    image, text = pair.prompt.messages[0].parts
    for parts in (
        (image, replace(text, text=f"What is {token}?")),
        (image, Part("text", token[:3]), Part("text", token[3:])),
    ):
        prompt = replace(pair.prompt, messages=(Message("user", parts),))
        assert refusal(collator, replace(pair, prompt=prompt)) == "image_count"
    assert (
        refusal(collator, replace(pair, chosen=Response(f"It is {token}.")))
        == "response_media"
    )


def test_text_and_image_prompts_share_a_batch(
    collator: Collator,
    store: ImageStore,
) -> None:
    pairs = make_pairs(store, 2)
    batch = collator.collate(
        encoded(collator, [replace(pairs[0], prompt=text_prompt()), pairs[1]])
    )
    assert batch.media["pixel_values"].shape[0] == 2


def test_the_cache_is_bounded_and_keyed_by_content(
    model_path: Path,
    store: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = ChatEncoder(model_path, 256)
    prompts = [pair.prompt for pair in make_pairs(store, 3)]
    calls = []
    original = ChatEncoder.encode_prompt

    def noting_the_call(self: ChatEncoder, prompt: Prompt, view: None) -> EncodedPrompt:
        calls.append(prompt.id)
        return original(self, prompt, view)

    inputs = original(encoder, prompts[0]).model_inputs
    one = sum(value.nbytes for value in inputs.values())
    monkeypatch.setattr(ChatEncoder, "encode_prompt", noting_the_call)
    cache = PromptCache(encoder, max_bytes=2 * one)
    for prompt in (
        prompts[0],
        prompts[1],
        replace(prompts[0], id="same content"),
        prompts[2],
        prompts[0],
        prompts[1],
    ):
        cache.encode(prompt)
    assert calls == ["prompt-0", "prompt-1", "prompt-2", "prompt-1"]
