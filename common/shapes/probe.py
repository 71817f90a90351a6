"""Honesty checks of a policy: what its vision encoder sees, what its captions say, whether the picture matters at all.

Greedy decoding on unbiased scenes. CHAIR_i = hallucinated mentions / mentions, CHAIR_s = captions with one or more /
captions, recall = true objects mentioned / true objects, `attributes` = mentions of present shapes whose colour and
place are both right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from common.shapes.batches import cell_classes, cell_of_patch, pixels
from common.shapes.decode import generate, response_logps
from common.shapes.language import CAPTION_PROMPTS, caption, parse_caption
from common.shapes.questions import POPE_SPLITS, PopeSplit, questions
from common.shapes.render import blank, render
from common.shapes.scenes import COLOURS, NUM_CELLS, SHAPES, Scene, split_scenes

Captioner = Callable[[Sequence[Image.Image], float], list[str]]


@dataclass(frozen=True, slots=True)
class CaptionScore:
    """CHAIR and its companions over a set of captions, all as shares."""

    chair_i: float
    chair_s: float
    recall: float
    attributes: float


@dataclass(frozen=True, slots=True)
class Honesty:
    """Caption scores with the scene's picture, another scene's and a blank one; POPE figures per split.

    `blind_logp_drop` is how much summed log-prob (nats) true captions lose with a blank picture.
    """

    seeing: CaptionScore
    shuffled: CaptionScore
    blind: CaptionScore
    sampled: CaptionScore
    pope_accuracy: Mapping[PopeSplit, float]
    pope_yes_ratio: Mapping[PopeSplit, float]
    blind_logp_drop: float
    mixed_share: float
    """Share of scenes with an absent partner where 8 samples hold both hallucinating and clean captions."""


def score_captions(scenes: Sequence[Scene], captions: Sequence[str]) -> CaptionScore:
    """The scores of one caption per scene."""
    num_mentions = 0
    num_hallucinated = 0
    num_bad_captions = 0
    num_objects = 0
    num_recalled = 0
    num_exact = 0
    for scene, text in zip(scenes, captions, strict=True):
        truth = {o.shape: (o.colour, o.place) for o in scene.objects}
        mentions = parse_caption(text)
        named = set()
        hallucinated = 0
        for mention in mentions:
            named.add(mention.shape)
            hallucinated += mention.shape not in truth
            num_exact += truth.get(mention.shape) == (mention.colour, mention.place)
        num_mentions += len(mentions)
        num_hallucinated += hallucinated
        num_bad_captions += hallucinated > 0
        num_objects += len(truth)
        num_recalled += len(truth.keys() & named)
    num_present = max(num_mentions - num_hallucinated, 1)
    return CaptionScore(
        chair_i=num_hallucinated / max(num_mentions, 1),
        chair_s=num_bad_captions / len(scenes),
        recall=num_recalled / num_objects,
        attributes=num_exact / num_present,
    )


def honesty(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    count: int = 400,
) -> Honesty:
    """Run every check on `count` unbiased test scenes."""
    model.eval()
    scenes = split_scenes("test", count, seed=7)
    images = [render(scene) for scene in scenes]
    strangers = images[1:] + images[:1]
    blanks = [blank()] * count

    def captions(pictures: Sequence[Image.Image], temperature: float) -> list[str]:
        asked = [CAPTION_PROMPTS[0]] * len(pictures)
        return generate(model, tokenizer, pictures, asked, temperature=temperature)

    accuracy = {}
    yes_ratio = {}
    for split in POPE_SPLITS:
        accuracy[split], yes_ratio[split] = _pope(model, tokenizer, scenes, split)
    truths = [caption(scene) for scene in scenes]
    seeing_logps = response_logps(model, tokenizer, images, truths)
    blind_logps = response_logps(model, tokenizer, blanks, truths)
    drop = seeing_logps - blind_logps
    return Honesty(
        seeing=score_captions(scenes, captions(images, 0.0)),
        shuffled=score_captions(scenes, captions(strangers, 0.0)),
        blind=score_captions(scenes, captions(blanks, 0.0)),
        sampled=score_captions(scenes, captions(images, 1.0)),
        pope_accuracy=accuracy,
        pope_yes_ratio=yes_ratio,
        blind_logp_drop=drop.mean().item(),
        mixed_share=_mixed_share(scenes, captions),
    )


def _pope(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    scenes: Sequence[Scene],
    split: PopeSplit,
) -> tuple[float, float]:
    """Accuracy and share of "yes" among the answers."""
    pictures = []
    asked = []
    for scene in scenes:
        for question in questions(scene, split):
            pictures.append(render(scene))
            asked.append(question)
    texts = generate(model, tokenizer, pictures, [question.text for question in asked])
    num_right = 0
    num_yes = 0
    for question, text in zip(asked, texts, strict=True):
        answer = "no" if "no" in text.lower() else "yes"
        num_right += answer == question.answer
        num_yes += answer == "yes"
    return num_right / len(asked), num_yes / len(asked)


def _mixed_share(
    scenes: Sequence[Scene], captions: Captioner, samples: int = 8
) -> float:
    """Share of scenes with an absent partner whose samples are neither all clean nor all hallucinating."""
    tempting = [scene for scene in scenes if scene.absent_partners][:64]
    images = [render(scene) for scene in tempting]
    draws = [captions(images, 1.0) for _ in range(samples)]
    num_mixed = 0
    for index, scene in enumerate(tempting):
        num_clean = 0
        for draw in draws:
            num_clean += score_captions([scene], [draw[index]]).chair_s == 0
        num_mixed += 0 < num_clean < samples
    return num_mixed / len(tempting)


def probe_accuracy(
    model: LlavaForConditionalGeneration, train: int = 1500, test: int = 500
) -> float:
    """How well a fresh linear readout of the vision encoder names shape and colour per cell of unbiased test scenes.

    It is the lower of two shares: occupied cells with both right, and empty cells that are called empty. Most cells are
    empty, so a plain average would flatter.
    """
    train_scenes = split_scenes("train", train, seed=11, bias=0.0)
    test_scenes = split_scenes("test", test, seed=11)
    train_features = _cell_features(model, train_scenes)
    test_features = _cell_features(model, test_scenes)
    num_classes = (len(SHAPES) + 1, len(COLOURS) + 1)
    train_classes = cell_classes(train_scenes)
    test_classes = cell_classes(test_scenes)
    right = torch.ones(test * NUM_CELLS, dtype=torch.bool)
    for count, given, expected in zip(
        num_classes, train_classes, test_classes, strict=True
    ):
        head = _fit_linear(train_features, given.flatten(), count)
        right &= head(test_features).argmax(-1) == expected.flatten()
    empty = test_classes[0].flatten() == len(SHAPES)
    empty_right = right[empty].float().mean().item()
    occupied_right = right[~empty].float().mean().item()
    return min(empty_right, occupied_right)


@torch.no_grad()
def _cell_features(
    model: LlavaForConditionalGeneration, scenes: Sequence[Scene]
) -> Tensor:
    """Mean vision feature over the patches of every cell, (scenes x 9, width)."""
    membership = nn.functional.one_hot(cell_of_patch(), NUM_CELLS).float()
    membership /= membership.sum(0)
    rows = []
    for start in range(0, len(scenes), 250):
        images = pixels([render(scene) for scene in scenes[start : start + 250]])
        features = model.model.vision_tower(images).last_hidden_state[:, 1:]
        rows.append(torch.einsum("bpw,pc->bcw", features, membership))
    return torch.cat(rows).flatten(0, 1)


def _fit_linear(features: Tensor, classes: Tensor, count: int) -> nn.Linear:
    head = nn.Linear(features.shape[1], count)
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=60, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(features), classes)
        loss.backward()
        return loss

    optimizer.step(closure)
    return head
