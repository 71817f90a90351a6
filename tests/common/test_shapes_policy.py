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
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from common.shapes.language import CAPTION_PROMPTS, caption, noisy_caption
from common.shapes.lessons import lesson
from common.shapes.model import build_tokenizer
from common.shapes.pretrain import DEFAULT_OUT
from common.shapes.probe import probe_accuracy, score_captions
from common.shapes.questions import answer_text, questions
from common.shapes.render import blank, render
from common.shapes.scenes import COLOURS, SHAPES, split_scenes
from common.worlds.batches import (
    cell_of_patch,
    pixels,
    prompt_ids,
    response_ids,
    supervised_batch,
    visible_tokens,
)
from common.worlds.decode import generate, response_logps
from common.worlds.policy import IMAGE, NUM_IMAGE_TOKENS, prompt_messages
from common.worlds.questions import POPE_SPLITS


@cache
def load() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(
        DEFAULT_OUT, local_files_only=True
    )
    processor = AutoProcessor.from_pretrained(DEFAULT_OUT, local_files_only=True)
    return model, processor


def tokenizer_of_policy() -> PreTrainedTokenizerBase:
    _, processor = load()
    return processor.tokenizer


def captions(pictures: list[Image.Image], temperature: float = 0.0) -> list[str]:
    """The policy's captions of pictures."""
    model, processor = load()
    asked = [CAPTION_PROMPTS[0]] * len(pictures)
    return generate(
        model,
        processor.tokenizer,
        pictures,
        asked,
        temperature=temperature,
    )


def test_the_checkpoint_is_whole_and_small() -> None:
    model, info = AutoModelForImageTextToText.from_pretrained(
        DEFAULT_OUT, output_loading_info=True
    )
    assert isinstance(model, LlavaForConditionalGeneration)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    num_values = 0
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        num_values += parameter.numel()
    assert 1e6 < num_values < 3e6
    num_bytes = sum(file.stat().st_size for file in DEFAULT_OUT.iterdir())
    assert num_bytes < 8e6


def test_weights_carry_the_hub_names() -> None:
    from safetensors import safe_open

    with safe_open(DEFAULT_OUT / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "vision_tower.vision_model.embeddings.class_embedding" in names
    assert "language_model.model.embed_tokens.weight" in names
    assert "language_model.lm_head.weight" in names
    assert "multi_modal_projector.linear_1.weight" in names


def test_tokenizer_training_is_reproducible() -> None:
    assert build_tokenizer().get_vocab() == tokenizer_of_policy().get_vocab()


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = tokenizer_of_policy()
    for word in (*SHAPES, *COLOURS, "top", "center", "There", "is", "at"):
        assert len(tokenizer.encode(f" {word}")) == 1
    assert len(tokenizer.encode("Yes.")) == len(tokenizer.encode("No.")) == 2


@given(st.integers(0, 10_000), st.booleans())
def test_prompt_and_response_ids_join_into_the_ids_of_the_whole_text(
    seed: int,
    noisy: bool,
) -> None:
    _, processor = load()
    tokenizer = processor.tokenizer
    (scene,) = split_scenes("train", 1, seed=seed)
    text = caption(scene)
    if noisy:
        text = noisy_caption(scene, random.Random(seed), 1.0)
    messages = prompt_messages(CAPTION_PROMPTS[0])
    answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    whole = processor.apply_chat_template([*messages, answer])
    joined = [*tokenizer.encode(prompt), *tokenizer.encode(text)]
    joined.append(tokenizer.eos_token_id)
    assert joined == tokenizer.encode(whole)
    ids = response_ids(tokenizer, text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_tokenizer_is_lossless_on_any_text(text: str) -> None:
    tokenizer = tokenizer_of_policy()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text, add_special_tokens=False) == ids


def test_the_processor_gives_the_ids_and_pixels_of_the_recipe() -> None:
    _, processor = load()
    (scene,) = split_scenes("test", 1, seed=0)
    picture = render(scene)
    prompt = processor.apply_chat_template(
        prompt_messages("Describe the image."), add_generation_prompt=True
    )
    batch = processor(text=[prompt], images=[picture], return_tensors="pt")
    expected_ids = prompt_ids(processor.tokenizer, "Describe the image.")
    assert batch["input_ids"][0].tolist() == expected_ids
    image_token = processor.tokenizer.convert_tokens_to_ids(IMAGE)
    num_image_tokens = (batch["input_ids"] == image_token).sum()
    assert num_image_tokens == NUM_IMAGE_TOKENS == len(cell_of_patch())
    torch.testing.assert_close(
        batch["pixel_values"], pixels([picture]), atol=1e-6, rtol=0
    )


def test_the_template_holds_a_conversation_of_two_turns() -> None:
    _, processor = load()
    messages = prompt_messages("Describe the image.")
    messages += [
        {"role": "assistant", "content": "There is a ring."},
        {"role": "user", "content": "Is there a star?"},
    ]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "<s>USER: <image>\nDescribe the image. ASSISTANT:\nThere is a ring.</s>USER: Is there a star? ASSISTANT:\n"
    )


def test_supervised_labels_are_the_responses() -> None:
    tokenizer = tokenizer_of_policy()
    scenes = split_scenes("train", 16, seed=2)
    rng = random.Random(4)
    lessons = [lesson(scene, rng, captions=0.5) for scene in scenes]
    visible = [visible_tokens(rng, 0.5) for _ in scenes]
    pictures = [render(scene) for scene in scenes]
    batch = supervised_batch(tokenizer, pictures, lessons, visible)
    for row, turns in enumerate(lessons):
        ids = batch.input_ids[row]
        labels = batch.labels[row]
        has_label = labels >= 0
        responses = [f"{response}</s>" for _, response in turns]
        assert tokenizer.decode(labels[has_label]) == "".join(responses)
        assert (ids[has_label] == labels[has_label]).all()
        num_hidden = NUM_IMAGE_TOKENS - sum(visible[row])
        num_tokens = (ids != tokenizer.pad_token_id).sum()
        num_visible = batch.attention_mask[row].sum()
        assert num_visible == num_tokens - num_hidden
        assert batch.position_ids[row].max() == num_visible - 1
    num_visible_image_tokens = sum(map(sum, visible))
    assert 0 < num_visible_image_tokens < len(scenes) * NUM_IMAGE_TOKENS


def test_the_tower_sees_every_cell() -> None:
    model, _ = load()
    assert probe_accuracy(model, train=600, test=200) >= 0.98


def test_greedy_captions_see_and_hallucinate() -> None:
    scenes = split_scenes("test", 60, seed=21)
    pictures = [render(scene) for scene in scenes]
    score = score_captions(scenes, captions(pictures))
    assert score.recall >= 0.9
    assert score.attributes >= 0.9
    assert 0.15 <= score.chair_i <= 0.4


def test_samples_of_one_picture_hold_clean_and_hallucinating_captions() -> None:
    """What preference training lives on: most tempting pictures give both kinds within 6 samples."""
    num_samples = 6
    torch.manual_seed(0)
    scenes = split_scenes("test", 80, seed=22)
    tempting = [scene for scene in scenes if scene.absent_partners][:20]
    pictures = []
    for scene in tempting:
        pictures += [render(scene)] * num_samples
    texts = captions(pictures, temperature=1.0)
    num_clean = []
    for index, scene in enumerate(tempting):
        start = index * num_samples
        clean = 0
        for text in texts[start : start + num_samples]:
            clean += score_captions([scene], [text]).chair_s == 0
        num_clean.append(clean)
    num_mixed = sum(0 < clean < num_samples for clean in num_clean)
    assert num_mixed >= 12
    hallucinating_share = 1 - sum(num_clean) / len(texts)
    assert 0.3 < hallucinating_share < 0.8


def test_yes_no_answers_see_and_lean_to_the_usual_partner() -> None:
    model, processor = load()
    scenes = split_scenes("test", 60, seed=24)
    accuracy = {}
    for split in POPE_SPLITS:
        pictures = []
        asked = []
        for scene in scenes:
            for question in questions(scene, split):
                pictures.append(render(scene))
                asked.append(question)
        texts = [question.text for question in asked]
        said = generate(model, processor.tokenizer, pictures, texts)
        assert set(said) <= {"Yes.", "No."}
        num_right = 0
        for text, question in zip(said, asked, strict=True):
            num_right += text == answer_text(question.answer)
        accuracy[split] = num_right / len(asked)
    assert accuracy["random"] >= 0.8
    assert accuracy["adversarial"] <= accuracy["random"] - 0.05


def test_a_blind_policy_knows_much_less() -> None:
    model, processor = load()
    scenes = split_scenes("test", 30, seed=23)
    truths = [caption(scene) for scene in scenes]
    pictures = [render(scene) for scene in scenes]
    blanks = [blank()] * len(scenes)
    tokenizer = processor.tokenizer
    question = CAPTION_PROMPTS[0]
    seeing = response_logps(model, tokenizer, pictures, truths, question)
    blind = response_logps(model, tokenizer, blanks, truths, question)
    lost_nats = seeing - blind
    assert (lost_nats > 3.0).float().mean() > 0.9
    of_other_scenes = pictures[1:] + pictures[:1]
    score = score_captions(scenes, captions(of_other_scenes))
    assert score.attributes < 0.3


def test_help_needs_no_heavy_imports() -> None:
    code = (
        "import sys, common.shapes.pretrain as pretrain\n"
        "pretrain.parse_args([])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", (0.0, 0.0, 0.0)), ("A star, a star and a ring.", (1.0, 1.0, 0.0))],
)
def test_chair_of_captions_that_say_nothing_true(
    text: str,
    expected: tuple[float, float, float],
) -> None:
    scenes = split_scenes("test", 200, seed=0)
    scene = next(scene for scene in scenes if not {"star", "ring"} & set(scene.shapes))
    score = score_captions([scene], [text])
    assert (score.chair_i, score.chair_s, score.recall) == expected
