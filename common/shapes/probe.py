"""Honesty checks of a policy: what the tower sees, what the captions say, and whether the picture matters at all.

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
    """Caption scores with the right, a stranger's and no picture; POPE accuracy per split; log-prob lost when blind."""

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
    mentions = imagined = bad_captions = found = true = exact = 0
    for scene, text in zip(scenes, captions, strict=True):
        truth = {o.shape: (o.colour, o.place) for o in scene.objects}
        said = parse_caption(text)
        wrong = [m for m in said if m.shape not in truth]
        mentions, imagined, bad_captions = (
            mentions + len(said),
            imagined + len(wrong),
            bad_captions + bool(wrong),
        )
        true, found = (
            true + len(truth),
            found + len(truth.keys() & {m.shape for m in said}),
        )
        exact += sum(truth.get(m.shape) == (m.colour, m.place) for m in said)
    present = max(mentions - imagined, 1)
    return CaptionScore(
        imagined / max(mentions, 1),
        bad_captions / len(scenes),
        found / true,
        exact / present,
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

    accuracy, yes_ratio = {}, {}
    for split in POPE_SPLITS:
        accuracy[split], yes_ratio[split] = _pope(model, tokenizer, scenes, split)
    truths = [caption(scene) for scene in scenes]
    drop = response_logps(model, tokenizer, images, truths) - response_logps(
        model, tokenizer, blanks, truths
    )
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
    asked = [
        (scene, question) for scene in scenes for question in questions(scene, split)
    ]
    pictures, texts = (
        [render(scene) for scene, _ in asked],
        [question.text for _, question in asked],
    )
    said = [
        "no" if "no" in text.lower() else "yes"
        for text in generate(model, tokenizer, pictures, texts)
    ]
    right = sum(
        word == question.answer for word, (_, question) in zip(said, asked, strict=True)
    )
    return right / len(asked), said.count("yes") / len(asked)


def _mixed_share(
    scenes: Sequence[Scene], captions: Captioner, samples: int = 8
) -> float:
    tempting = [scene for scene in scenes if scene.absent_partners][:64]
    images = [render(scene) for scene in tempting]
    draws = [captions(images, 1.0) for _ in range(samples)]
    clean = [
        sum(score_captions([scene], [draw[i]]).chair_s == 0 for draw in draws)
        for i, scene in enumerate(tempting)
    ]
    return sum(0 < c < samples for c in clean) / len(tempting)


def probe_accuracy(
    model: LlavaForConditionalGeneration, train: int = 1500, test: int = 500
) -> float:
    """How well a fresh linear readout of the tower names shape and colour per cell of unbiased test scenes.

    The lower of two shares: occupied cells with both right, empty cells found empty (most cells are empty, so that a
    plain average would flatter).
    """
    seen, held_out = (
        split_scenes("train", train, seed=11, bias=0.0),
        split_scenes("test", test, seed=11),
    )
    known, unknown = _cell_features(model, seen), _cell_features(model, held_out)
    right = torch.ones(test * NUM_CELLS, dtype=torch.bool)
    names = (len(SHAPES), len(COLOURS))
    for count, given, wanted in zip(
        names, cell_classes(seen), cell_classes(held_out), strict=True
    ):
        head = _fit_linear(known, given.flatten(), count + 1)
        right &= head(unknown).argmax(-1) == wanted.flatten()
    empty = cell_classes(held_out)[0].flatten() == len(SHAPES)
    return min(right[empty].float().mean().item(), right[~empty].float().mean().item())


@torch.no_grad()
def _cell_features(
    model: LlavaForConditionalGeneration, scenes: Sequence[Scene]
) -> Tensor:
    """Mean tower feature of the patches of every cell, (scenes x 9, width)."""
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
