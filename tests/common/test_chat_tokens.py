"""The tokens are transformers' own, for every family, with and without BOS, and so is the end of an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoProcessor

from common.chat import ChatEncoder
from common.config import SHAPES_POLICY
from common.data.images import ImageStore
from common.records import Prompt
from common.shapes.prompts import caption_prompts
from common.worlds.policy import CHAT_TEMPLATE, prompt_messages
from tests.common.chat_models import (
    CHATML,
    FAMILIES,
    GEMMA,
    LLAVA_HF,
    MISTRAL,
    conversation,
    copy_of,
    edit,
    put_around,
    transformers_ids,
    unexpanded,
)

WITH_BOS = CHAT_TEMPLATE.replace("<image>", "IMAGE")
WITHOUT_BOS = WITH_BOS.replace("{{ bos_token }}", "")
ANSWER = "A blue star."


def conversations(store: ImageStore) -> list[Prompt]:
    """Single and multi-turn, with and without a system turn."""
    single, several = ("What is seen?",), ("What is seen?", "A circle.", "Which one?")
    return [
        conversation(store, *texts, system=system)
        for texts in (single, several)
        for system in (None, "Be brief.")
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("template", [WITH_BOS, WITHOUT_BOS])
@pytest.mark.parametrize("tokenizer_adds_bos", [False, True])
def test_tokens_are_transformers_own(
    family: str,
    template: str,
    tokenizer_adds_bos: bool,
    store: ImageStore,
    tmp_path: Path,
) -> None:
    folder = copy_of(FAMILIES[family](), tmp_path / "model", template)
    if tokenizer_adds_bos:
        put_around(folder, "<s>")
    encoder = ChatEncoder(folder, 512)
    assert encoder.warnings == []
    bos = encoder.tokenizer.bos_token_id
    for prompt in conversations(store):
        encoded = encoder.encode_prompt(prompt)
        assert list(encoded.token_ids) == transformers_ids(folder, prompt)
        # The engine begins with the same tokens, and expands the image itself.
        assert encoder.prompt_ids(prompt) == unexpanded(encoder, encoded.token_ids)
        has_bos = template is WITH_BOS or tokenizer_adds_bos
        assert encoded.token_ids.count(bos) == has_bos

        whole = transformers_ids(folder, prompt, ANSWER)
        assert [*encoded.token_ids, *encoder.encode_response(ANSWER)] == whole


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (GEMMA, "<end_of_turn>"),
        (MISTRAL, "</s>"),
        (LLAVA_HF, "</s>"),
    ],
)
def test_an_answer_ends_as_the_template_ends_a_turn(
    family: str, template: str, end: str, store: ImageStore, tmp_path: Path
) -> None:
    tokens = ("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>")
    folder = copy_of(FAMILIES[family](), tmp_path / "model", template, tokens)
    encoder = ChatEncoder(folder, 512)
    (end_id,) = encoder.tokenizer.convert_tokens_to_ids([end])
    assert encoder.eos_token_id == end_id
    # "</s>" is what vLLM stops at by itself, whatever the template says.
    assert encoder.extra_stop_token_ids == (() if end == "</s>" else (end_id,))
    answer = encoder.encode_response(ANSWER)
    assert answer[-1] == end_id
    assert encoder.decode(answer).strip() == ANSWER
    for prompt in conversations(store):
        prompt_ids = encoder.encode_prompt(prompt).token_ids
        assert list(prompt_ids) == transformers_ids(folder, prompt)
        whole = transformers_ids(folder, prompt, ANSWER)
        trained = [*prompt_ids, *answer]
        if template is LLAVA_HF:
            # The template writes a space where the policy has to learn to stop.
            assert trained[:-1] == whole[: len(trained) - 1]
        else:
            assert trained == whole[: len(trained)]


def test_sampled_white_space_in_front_is_not_doubled(tmp_path: Path) -> None:
    """Behind "ASSISTANT:" the policy samples " A blue star.", which is what an offline answer becomes."""
    encoder = ChatEncoder(
        copy_of(FAMILIES["llava"](), tmp_path / "model", LLAVA_HF), 512
    )
    answer = encoder.encode_response("A blue star.")
    assert encoder.decode(answer) == " A blue star."
    assert encoder.encode_response(" A blue star.") == answer
    assert encoder.encode_prefix("A blue") == encoder.encode_prefix(" A blue")
    assert encoder.decode(encoder.encode_prefix("A blue")) == " A blue"
    assert encoder.encode_response("") == (encoder.eos_token_id,)


def test_an_end_that_generation_config_lacks_is_said(tmp_path: Path) -> None:
    source = FAMILIES["llava"]()
    folder = copy_of(source, tmp_path / "model", CHATML, ("<|im_start|>", "<|im_end|>"))
    (warning,) = ChatEncoder(folder, 512).warnings
    assert "generation_config.json" in warning
    end = ChatEncoder(folder, 512).eos_token_id
    edit(folder / "generation_config.json", lambda c: c.update(eos_token_id=[1, end]))
    encoder = ChatEncoder(folder, 512)
    assert encoder.warnings == []
    assert encoder.extra_stop_token_ids == ()
    assert encoder.stop_token_ids == (1, end)


def test_a_tokenizer_that_names_another_end_trains_the_templates(
    store: ImageStore, tmp_path: Path
) -> None:
    """As Gemma 3: tokenizer.eos_token ends no turn; generation_config lists it beside the turn's end."""
    template = WITH_BOS.replace("eos_token", "'</s>'")
    folder = copy_of(FAMILIES["llava"](), tmp_path / "model", template)
    edit(folder / "tokenizer_config.json", lambda c: c.update(eos_token="<pad>"))
    edit(folder / "generation_config.json", lambda c: c.update(eos_token_id=[2, 1]))
    encoder = ChatEncoder(folder, 512)
    assert (encoder.eos_token_id, encoder.stop_token_ids) == (1, (1, 2))
    assert encoder.extra_stop_token_ids == ()
    prompt = conversation(store, "What is seen?")
    trained = [*encoder.encode_prompt(prompt).token_ids, *encoder.encode_response("A.")]
    assert trained == transformers_ids(folder, prompt, "A.")


def test_the_demos_policy_encodes_as_ever(store: ImageStore) -> None:
    """By its own processor and tokenizer, as every run before encoded it."""
    encoder = ChatEncoder(SHAPES_POLICY, 512)
    assert encoder.warnings == []
    processor = AutoProcessor.from_pretrained(SHAPES_POLICY)
    tokenizer = processor.tokenizer
    for prompt in caption_prompts("train", 8, 5, store):
        (image, part) = prompt.messages[0].parts
        assert (image.kind, part.kind) == ("image", "text")
        text = processor.apply_chat_template(
            prompt_messages(part.text), add_generation_prompt=True
        )
        pixels = encoder.load_images(prompt)
        before = processor(text=[text], images=pixels, return_tensors="pt")
        encoded = encoder.encode_prompt(prompt)
        assert list(encoded.token_ids) == before["input_ids"][0].tolist()
        assert encoded.model_inputs["pixel_values"].equal(before["pixel_values"])
        assert set(encoded.model_inputs) == {"pixel_values"}
        assert encoder.prompt_ids(prompt) == tokenizer(text)["input_ids"]
        assert prompt.reference
        answer = tokenizer.encode(prompt.reference, add_special_tokens=False)
        expected = (*answer, tokenizer.eos_token_id)
        assert encoder.encode_response(prompt.reference) == expected
        assert encoder.encode_prefix(prompt.reference) == tuple(answer)
    assert encoder.extra_stop_token_ids == ()
