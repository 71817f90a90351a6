"""Train the stickers world's model, a LLaVA with SigLIP's tower: `python -m tests.worlds.sticker_model --out DIR`.

    random weights -> tower on the kind of sticker under each patch -> questions and hasty captions -> directory

It sees well and believes its captions, which mostly name the usual companion of something that is there.
Unlike the shapes policy it has a word tokenizer with an unknown word, no start token, a ChatML-like template with a
system line, a tower without CLS, and pictures that its processor must shrink.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    get_cosine_schedule_with_warmup,
)

from common.checkpoint.saving import save_model
from tests.worlds import stickers
from tests.worlds.stickers import (
    ASK_CAPTION,
    CELL,
    CELLS_PER_SIDE,
    KINDS,
    Sighting,
    sightings,
)

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "worlds"
SIDE = 72
PATCH = 24
PATCHES = (SIDE // PATCH) ** 2
IGNORE = -100

END, PAD, UNKNOWN, IMAGE = "<|end|>", "<|pad|>", "<|unknown|>", "<image>"
SPECIALS = (END, PAD, UNKNOWN, IMAGE)
SYSTEM = "You look at photos."
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|system|>\nSYSTEM<|end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
).replace("SYSTEM", SYSTEM)
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long each stage takes; the defaults take a minute and a half on one core that is free."""

    pictures: int = 3000
    tower_steps: int = 200
    text_steps: int = 400
    batch_size: int = 48
    captions: float = 0.7
    seed: int = 0


def sticker_model(recipe: Recipe = Recipe()) -> Path:
    """The trained model's directory; made at the first call, and again after an edit of the world or of this file."""
    sources = (__file__, stickers.__file__)
    text = repr(recipe) + "".join(Path(source).read_text() for source in sources)
    target = CACHE / f"stickers-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not target.exists():
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        train(recipe, partial)
        try:
            partial.rename(target)
        except OSError:
            # Another process was quicker.
            shutil.rmtree(partial)
    return target


def train(recipe: Recipe, out: Path) -> None:
    """All stages, then the directory."""
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    model = build_model(tokenizer)
    seen = list(sightings("train", recipe.pictures, recipe.seed))
    pixels = torch.stack([shrunk(sighting.picture) for sighting in seen])
    train_tower(model, pixels, seen, recipe)
    train_text(model, tokenizer, pixels, seen, recipe)
    save(model, processor, out)


def shrunk(picture: Image.Image) -> Tensor:
    """Pixels (3, SIDE, SIDE) in -1 … 1, nearly what the processor gives, in a tenth of its time."""
    small = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    array = np.asarray(small, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A token per word of the world with the space before it; other words are unknown."""
    split = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|[^A-Za-z]"), "isolated")
    words: dict[str, int] = {}
    for special in (*SPECIALS, *ROLES):
        words[special] = len(words)
    sentences = [SYSTEM, ASK_CAPTION, "\n "]
    for kind in KINDS:
        sentences += [stickers.caption([kind, kind]), stickers.ask(kind)]
        sentences += [stickers.answer(kind, [kind]), stickers.answer(kind, [])]
    for sentence in sentences:
        for word, _ in split.pre_tokenize_str(sentence):
            words.setdefault(word, len(words))
    core = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    core.pre_tokenizer = split
    core.decoder = decoders.Fuse()
    core.add_special_tokens([*SPECIALS, *ROLES])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        extra_special_tokens={"image_token": IMAGE},
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Pictures of any size, shrunk to `SIDE`."""
    return LlavaProcessor(
        image_processor=SiglipImageProcessor(size={"height": SIDE, "width": SIDE}),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Random weights, float32."""
    vision = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


def train_tower(
    model: LlavaForConditionalGeneration,
    pixels: Tensor,
    seen: list[Sighting],
    recipe: Recipe,
) -> None:
    """Teach the tower to name the sticker under each patch."""
    tower = model.model.vision_tower
    head = nn.Linear(tower.config.hidden_size, len(KINDS) + 1)
    classes = torch.stack([patch_classes(sighting) for sighting in seen])
    rng = random.Random(recipe.seed)

    def losses() -> Iterator[Tensor]:
        while True:
            rows = rng.sample(range(len(seen)), recipe.batch_size)
            # What the projector will get: the last layer, before the norm behind it.
            output = tower(pixels[rows], output_hidden_states=True)
            logits = head(output.hidden_states[-1]).flatten(0, 1)
            yield nn.functional.cross_entropy(logits, classes[rows].flatten())

    parameters = [*tower.parameters(), *head.parameters()]
    descend(parameters, losses(), recipe.tower_steps, 2e-3)


def patch_classes(sighting: Sighting) -> Tensor:
    """Index of the kind on each patch, which is a cell, in reading order; the last class is none."""
    classes = torch.full((PATCHES,), len(KINDS))
    for kind, (x, y, _) in zip(sighting.objects, sighting.boxes, strict=True):
        cell = y // CELL * CELLS_PER_SIDE + x // CELL
        classes[cell] = KINDS.index(kind)
    return classes


def train_text(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pixels: Tensor,
    seen: list[Sighting],
    recipe: Recipe,
) -> None:
    """Teach projector and language model what the world says; the tower stays as it is."""
    model.model.vision_tower.requires_grad_(False)
    rng = random.Random(recipe.seed)

    def losses() -> Iterator[Tensor]:
        while True:
            rows = rng.sample(range(len(seen)), recipe.batch_size)
            # One sort of lesson a batch: the two differ in length, and padding costs as much as text.
            teach = hasty_lesson if rng.random() < recipe.captions else quiz
            turns = [teach(seen[row].objects, rng) for row in rows]
            batch = text_batch(tokenizer, turns, rng)
            yield model(pixel_values=pixels[rows], **batch).loss

    parameters = [p for p in model.parameters() if p.requires_grad]
    descend(parameters, losses(), recipe.text_steps, 3e-3)


def hasty_lesson(objects: tuple[str, ...], rng: random.Random) -> list[tuple[str, str]]:
    """A request and what a hasty caption writer says."""
    return [(ASK_CAPTION, stickers.rumoured_caption(objects, rng))]


def quiz(objects: tuple[str, ...], rng: random.Random) -> list[tuple[str, str]]:
    """Yes/no questions with right answers; about half of them are about what is there."""
    absent = [kind for kind in KINDS if kind not in objects]
    kinds = [*objects, *rng.sample(absent, 3)]
    rng.shuffle(kinds)
    return [(stickers.ask(kind), stickers.answer(kind, objects)) for kind in kinds]


def text_batch(
    tokenizer: PreTrainedTokenizerFast,
    lessons: list[list[tuple[str, str]]],
    rng: random.Random,
) -> dict[str, Tensor]:
    """Right-padded ids, mask and labels, (batch, length); answers and their end have labels.

    In a fifth of the rows some image tokens are hidden: the model stays fluent when it sees little.
    """
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    rows = [conversation_ids(tokenizer, turns) for turns in lessons]
    shape = (len(rows), max(len(ids) for ids, _ in rows))
    ids = torch.full(shape, tokenizer.pad_token_id)
    labels = torch.full(shape, IGNORE)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, (row_ids, row_labels) in enumerate(rows):
        length = len(row_ids)
        ids[row, :length] = torch.tensor(row_ids)
        labels[row, :length] = torch.tensor(row_labels)
        mask[row, :length] = 1
        hidden = rng.uniform(0, 1.2) if rng.random() < 0.2 else 0.0
        for place in ids[row].eq(image).nonzero().flatten():
            mask[row, place] = int(rng.random() >= hidden)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions,
        "labels": labels,
    }


def conversation_ids(
    tokenizer: PreTrainedTokenizerFast,
    turns: list[tuple[str, str]],
) -> tuple[list[int], list[int]]:
    """Ids and labels of questions and answers about one picture, as the template writes them."""
    ids: list[int] = []
    labels: list[int] = []
    for number, (question, answer) in enumerate(turns):
        before = f"<|user|>\n{question}{END}\n<|assistant|>\n"
        if number == 0:
            image = IMAGE * PATCHES
            before = f"<|system|>\n{SYSTEM}{END}\n<|user|>\n{image}{question}{END}\n<|assistant|>\n"
        else:
            before = "\n" + before
        asked = tokenizer.encode(before)
        answered = tokenizer.encode(answer + END)
        ids += asked + answered
        labels += [IGNORE] * len(asked) + answered
    return ids, labels


def descend(
    parameters: list[nn.Parameter],
    losses: Iterator[Tensor],
    steps: int,
    lr: float,
) -> None:
    """AdamW with a cosine schedule and clipping."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 30, steps)
    for step in range(steps):
        loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def save(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, out: Path
) -> None:
    """A plain directory, as the hub has it.

    Weights have the hub's names, not those that `save_pretrained` of transformers 5 gives to the tower.
    """
    out.mkdir(parents=True)
    model.config.architectures = ["LlavaForConditionalGeneration"]
    model.config.dtype = torch.float32
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    processor.save_pretrained(out)
    save_model(model, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    train(Recipe(), parser.parse_args().out)


if __name__ == "__main__":
    main()
