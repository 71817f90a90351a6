"""The shipped tiny policy: it loads, it sees, and it imagines what it was told to expect."""

from __future__ import annotations

import random
import subprocess
import sys
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from common.shapes.batches import (
    cell_of_patch,
    lesson,
    pixels,
    prompt_ids,
    response_ids,
    supervised_batch,
    visible_tokens,
)
from common.shapes.decode import generate, response_logps
from common.shapes.language import CAPTION_PROMPTS, caption, noisy_caption
from common.shapes.model import (
    IMAGE,
    NUM_IMAGE_TOKENS,
    build_tokenizer,
    prompt_messages,
)
from common.shapes.pretrain import DEFAULT_OUT
from common.shapes.probe import probe_accuracy, score_captions
from common.shapes.questions import POPE_SPLITS, answer_text, questions
from common.shapes.render import blank, render
from common.shapes.scenes import COLOURS, SHAPES, split_scenes


@cache
def load() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(
        DEFAULT_OUT, local_files_only=True
    )
    return model, AutoProcessor.from_pretrained(DEFAULT_OUT, local_files_only=True)


def test_the_checkpoint_is_whole_and_small() -> None:
    model, info = AutoModelForImageTextToText.from_pretrained(
        DEFAULT_OUT, output_loading_info=True
    )
    assert isinstance(model, LlavaForConditionalGeneration)
    assert (
        not info["missing_keys"]
        and not info["unexpected_keys"]
        and not info["mismatched_keys"]
    )
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 3e6
    assert sum(file.stat().st_size for file in DEFAULT_OUT.iterdir()) < 8e6


def test_weights_carry_the_hub_names() -> None:
    from safetensors import safe_open

    with safe_open(DEFAULT_OUT / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "vision_tower.vision_model.embeddings.class_embedding" in names
    assert "language_model.model.embed_tokens.weight" in names
    assert "language_model.lm_head.weight" in names
    assert "multi_modal_projector.linear_1.weight" in names


def test_tokenizer_training_is_reproducible() -> None:
    assert build_tokenizer().get_vocab() == load()[1].tokenizer.get_vocab()


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = load()[1].tokenizer
    for word in (*SHAPES, *COLOURS, "top", "center", "There", "is", "at"):
        assert len(tokenizer.encode(f" {word}")) == 1
    assert len(tokenizer.encode("Yes.")) == len(tokenizer.encode("No.")) == 2


@given(st.integers(0, 10_000), st.booleans())
def test_prompt_and_response_ids_join_into_the_ids_of_the_whole_text(
    seed: int, noisy: bool
) -> None:
    processor = load()[1]
    tokenizer = processor.tokenizer
    (scene,) = split_scenes("train", 1, seed=seed)
    text = noisy_caption(scene, random.Random(seed), 1.0) if noisy else caption(scene)
    messages = prompt_messages(CAPTION_PROMPTS[0])
    answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    whole = processor.apply_chat_template([*messages, answer])
    assert tokenizer.encode(prompt) + tokenizer.encode(text) + [
        tokenizer.eos_token_id
    ] == tokenizer.encode(whole)
    assert (
        tokenizer.decode(response_ids(tokenizer, text), skip_special_tokens=True)
        == text
    )


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_tokenizer_is_lossless_on_any_text(text: str) -> None:
    tokenizer = load()[1].tokenizer
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text, add_special_tokens=False) == ids


def test_the_processor_gives_the_ids_and_pixels_of_the_recipe() -> None:
    processor = load()[1]
    picture = render(split_scenes("test", 1, seed=0)[0])
    prompt = processor.apply_chat_template(
        prompt_messages("Describe the image."), add_generation_prompt=True
    )
    batch = processor(text=[prompt], images=[picture], return_tensors="pt")
    assert batch["input_ids"][0].tolist() == prompt_ids(
        processor.tokenizer, "Describe the image."
    )
    image_token = processor.tokenizer.convert_tokens_to_ids(IMAGE)
    assert (
        (batch["input_ids"] == image_token).sum()
        == NUM_IMAGE_TOKENS
        == len(cell_of_patch())
    )
    torch.testing.assert_close(
        batch["pixel_values"], pixels([picture]), atol=1e-6, rtol=0
    )


def test_the_template_holds_a_conversation_of_two_turns() -> None:
    processor = load()[1]
    messages = prompt_messages("Describe the image.")
    messages += [
        {"role": "assistant", "content": "There is a ring."},
        {"role": "user", "content": "Is there a star?"},
    ]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "<s>USER: <image>\nDescribe the image. ASSISTANT:\nThere is a ring.</s>USER: Is there a star? ASSISTANT:\n"
    )


def test_supervised_labels_are_the_responses() -> None:
    tokenizer = load()[1].tokenizer
    scenes, rng = split_scenes("train", 16, seed=2), random.Random(4)
    lessons = [lesson(scene, rng, captions=0.5) for scene in scenes]
    visible = [visible_tokens(rng, 0.5) for _ in scenes]
    batch = supervised_batch(tokenizer, scenes, lessons, visible)
    for row, turns in enumerate(lessons):
        responses = [response for _, response in turns]
        learnt = batch.labels[row][batch.labels[row] >= 0]
        assert tokenizer.decode(learnt) == "".join(
            response + "</s>" for response in responses
        )
        assert (batch.input_ids[row][batch.labels[row] >= 0] == learnt).all()
        hidden = NUM_IMAGE_TOKENS - sum(visible[row])
        assert (
            batch.attention_mask[row].sum()
            == (batch.input_ids[row] != tokenizer.pad_token_id).sum() - hidden
        )
        assert batch.position_ids[row].max() == batch.attention_mask[row].sum() - 1
    assert 0 < sum(map(sum, visible)) < len(scenes) * NUM_IMAGE_TOKENS


def test_the_tower_sees_every_cell() -> None:
    assert probe_accuracy(load()[0], train=600, test=200) >= 0.98


def test_greedy_captions_see_and_hallucinate() -> None:
    model, processor = load()
    scenes = split_scenes("test", 60, seed=21)
    score = score_captions(
        scenes, _captions(model, processor, [render(s) for s in scenes])
    )
    assert score.recall >= 0.9
    assert score.attributes >= 0.9
    assert 0.15 <= score.chair_i <= 0.4


def test_samples_of_one_picture_hold_clean_and_hallucinating_captions() -> None:
    """What preference training lives on: most tempting pictures give both kinds within 6 samples."""
    model, processor = load()
    torch.manual_seed(0)
    scenes = [s for s in split_scenes("test", 80, seed=22) if s.absent_partners][:20]
    pictures = [render(s) for s in scenes for _ in range(6)]
    texts = generate(
        model,
        processor.tokenizer,
        pictures,
        [CAPTION_PROMPTS[0]] * len(pictures),
        temperature=1.0,
    )
    clean = [
        score_captions([s], [texts[6 * i + k]]).chair_s == 0
        for i, s in enumerate(scenes)
        for k in range(6)
    ]
    mixed = [0 < sum(clean[6 * i : 6 * i + 6]) < 6 for i in range(len(scenes))]
    assert sum(mixed) >= 12
    assert 0.3 < 1 - sum(clean) / len(clean) < 0.8


def test_yes_no_answers_see_and_lean_to_the_usual_partner() -> None:
    model, processor = load()
    scenes = split_scenes("test", 60, seed=24)
    accuracy = {}
    for split in POPE_SPLITS:
        asked = [
            (scene, question)
            for scene in scenes
            for question in questions(scene, split)
        ]
        pictures, texts = (
            [render(scene) for scene, _ in asked],
            [question.text for _, question in asked],
        )
        said = generate(model, processor.tokenizer, pictures, texts)
        assert set(said) <= {"Yes.", "No."}
        right = [
            text == answer_text(question.answer)
            for text, (_, question) in zip(said, asked, strict=True)
        ]
        accuracy[split] = sum(right) / len(right)
    assert accuracy["random"] >= 0.8
    assert accuracy["adversarial"] <= accuracy["random"] - 0.05


def test_a_blind_policy_knows_much_less() -> None:
    model, processor = load()
    scenes = split_scenes("test", 30, seed=23)
    truths, pictures = [caption(s) for s in scenes], [render(s) for s in scenes]
    seeing = response_logps(model, processor.tokenizer, pictures, truths)
    blind = response_logps(model, processor.tokenizer, [blank()] * 30, truths)
    assert ((seeing - blind) > 3.0).float().mean() > 0.9
    score = score_captions(
        scenes, _captions(model, processor, pictures[1:] + pictures[:1])
    )
    assert score.attributes < 0.3


def test_help_needs_no_heavy_imports() -> None:
    code = "import sys, common.shapes.pretrain as p; p.parse_args([]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", (0.0, 0.0, 0.0)), ("A star, a star and a ring.", (1.0, 1.0, 0.0))],
)
def test_chair_of_captions_that_say_nothing_true(
    text: str, expected: tuple[float, float, float]
) -> None:
    scene = next(
        s
        for s in split_scenes("test", 200, seed=0)
        if not {"star", "ring"} & set(s.shapes)
    )
    score = score_captions([scene], [text])
    assert (score.chair_i, score.chair_s, score.recall) == expected


def _captions(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, pictures: list
) -> list[str]:  # type: ignore[type-arg]
    return generate(
        model, processor.tokenizer, pictures, [CAPTION_PROMPTS[0]] * len(pictures)
    )
