"""Checks of the tiny policy after pre-training: does its vision encoder see, do its captions hallucinate, does the
picture matter at all?

Answers are greedy and about unbiased scenes, unless said otherwise. The measures of captions, all as shares:

    CHAIR_i      of the mentions, those of shapes that are not there
    CHAIR_s      of the captions, those with such a mention
    recall       of the objects in the pictures, those that are mentioned
    attributes   of the mentions of present shapes, those whose colour and place are both right
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from common.shapes.language import CAPTION_PROMPTS, caption, parse_caption
from common.shapes.lessons import cell_classes
from common.shapes.questions import questions
from common.shapes.render import blank, render
from common.shapes.scenes import COLOURS, SHAPES, Scene, split_scenes
from common.worlds.decode import generate, response_logps
from common.worlds.probe import cell_features, fit_linear
from common.worlds.questions import POPE_SPLITS, PopeSplit

Captioner = Callable[[Sequence[Image.Image], float], list[str]]
"""(pictures, temperature) -> one caption per picture."""

NUM_SAMPLES = 8
"""Captions per scene that `mixed_share` looks at, and how many scenes."""
MAX_TEMPTING_SCENES = 64


@dataclass(frozen=True, slots=True)
class CaptionScore:
    """The measures of a set of captions, see the top of this file."""

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
    """Of the scenes with an absent partner, those whose sampled captions hallucinate in part: there is something to
    prefer."""


def score_captions(scenes: Sequence[Scene], captions: Sequence[str]) -> CaptionScore:
    """The scores of one caption per scene."""
    num_mentions = 0
    num_hallucinated = 0
    num_bad_captions = 0
    num_objects = 0
    num_recalled = 0
    num_exact = 0
    for scene, text in zip(scenes, captions, strict=True):
        attributes = {}
        for item in scene.objects:
            attributes[item.shape] = (item.colour, item.place)
        mentions = parse_caption(text)
        named_shapes = set()
        num_made_up = 0
        for mention in mentions:
            named_shapes.add(mention.shape)
            if mention.shape not in attributes:
                num_made_up += 1
                continue
            said = (mention.colour, mention.place)
            num_exact += said == attributes[mention.shape]
        num_mentions += len(mentions)
        num_hallucinated += num_made_up
        num_bad_captions += num_made_up > 0
        num_objects += len(attributes)
        num_recalled += len(attributes.keys() & named_shapes)
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
    # Every scene gets the picture of the next one.
    strangers = images[1:] + images[:1]
    blanks = [blank()] * count

    def captions(pictures: Sequence[Image.Image], temperature: float) -> list[str]:
        asked = [CAPTION_PROMPTS[0]] * len(pictures)
        return generate(
            model,
            tokenizer,
            pictures,
            asked,
            temperature=temperature,
        )

    accuracy = {}
    yes_ratio = {}
    for split in POPE_SPLITS:
        accuracy[split], yes_ratio[split] = _pope(model, tokenizer, scenes, split)
    truths = [caption(scene) for scene in scenes]
    seeing_logps = response_logps(model, tokenizer, images, truths, CAPTION_PROMPTS[0])
    blind_logps = response_logps(model, tokenizer, blanks, truths, CAPTION_PROMPTS[0])
    drop = seeing_logps - blind_logps
    # The order of the sampled captions is part of what a seed gives.
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
    question_texts = [question.text for question in asked]
    responses = generate(model, tokenizer, pictures, question_texts)
    num_right = 0
    num_yes = 0
    for question, response in zip(asked, responses, strict=True):
        answer = "no" if "no" in response.lower() else "yes"
        num_right += answer == question.answer
        num_yes += answer == "yes"
    num_asked = len(asked)
    return num_right / num_asked, num_yes / num_asked


def _mixed_share(scenes: Sequence[Scene], captions: Captioner) -> float:
    """Share of scenes with an absent partner whose samples are neither all clean nor all hallucinating."""
    tempting = [scene for scene in scenes if scene.absent_partners]
    tempting = tempting[:MAX_TEMPTING_SCENES]
    images = [render(scene) for scene in tempting]
    samples = [captions(images, 1.0) for _ in range(NUM_SAMPLES)]
    num_mixed = 0
    for index, scene in enumerate(tempting):
        num_clean = 0
        for texts in samples:
            score = score_captions([scene], [texts[index]])
            num_clean += score.chair_s == 0
        num_mixed += 0 < num_clean < NUM_SAMPLES
    return num_mixed / len(tempting)


def probe_accuracy(
    model: LlavaForConditionalGeneration,
    train: int = 1500,
    test: int = 500,
) -> float:
    """How well a fresh linear readout of the vision encoder names shape and colour per cell of unbiased test scenes.

    It is the lower of two shares: occupied cells with both right, and empty cells that are called empty. Most cells are
    empty, so an average over all cells would say little of the occupied ones.

    Args:
        train: number of scenes that the readout is fitted on.
        test: number of scenes that it is measured on.
    """
    train_scenes = split_scenes("train", train, seed=11, bias=0.0)
    test_scenes = split_scenes("test", test, seed=11)
    train_features = cell_features(model, [render(scene) for scene in train_scenes])
    test_features = cell_features(model, [render(scene) for scene in test_scenes])
    train_shapes, train_colours = cell_classes(train_scenes)
    test_shapes, test_colours = cell_classes(test_scenes)
    # The class after the last name is the empty cell.
    shape_head = fit_linear(train_features, train_shapes.flatten(), len(SHAPES) + 1)
    shape_read = shape_head(test_features).argmax(-1)
    colour_head = fit_linear(train_features, train_colours.flatten(), len(COLOURS) + 1)
    colour_read = colour_head(test_features).argmax(-1)
    shape_right = shape_read == test_shapes.flatten()
    colour_right = colour_read == test_colours.flatten()
    right = shape_right & colour_right
    is_empty = test_shapes.flatten() == len(SHAPES)
    empty_right: float = right[is_empty].float().mean().item()
    occupied_right: float = right[~is_empty].float().mean().item()
    return min(empty_right, occupied_right)
