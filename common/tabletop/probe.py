"""What sight knows and what the policy says: `python -m common.tabletop.probe [--policy DIR]`.

A linear readout of the vision tower, fitted on unbiased training scenes, says what sight knows of unbiased test scenes.
The policy's greedy answers about such scenes stand beside it. These are the numbers that docs/world2.md asks of a start
policy; the last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.tabletop.claims import compare
from common.tabletop.conversations import CAPTION, Question, answer, ask, pope_questions
from common.tabletop.scenes import KINDS, TRAIN_BIAS, Bias, Scene, split_scenes
from common.worlds.questions import POPE_SPLITS
from common.worlds.scenes import NUM_CELLS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

POLICY = Path(__file__).parent / "policy"
NUM_SAMPLES = 8
MAX_TEMPTING = 64


def sight(
    model: LlavaForConditionalGeneration,
    train: int = 2000,
    test: int = 600,
) -> dict[str, float]:
    """What a linear readout of the tower knows of unbiased test scenes, as shares.

    kind, colour, number   of the occupied cells, those that are read right
    empty                  of the empty cells, those that are called empty
    absent_partners        of the absent partners, those that it reads anywhere
    """
    from common.tabletop.render import render
    from common.tabletop.training import cell_classes
    from common.worlds.probe import cell_features, fit_linear

    train_scenes = split_scenes("train", train, seed=11)
    test_scenes = split_scenes("test", test, seed=11)
    train_features = cell_features(model, [render(scene) for scene in train_scenes])
    test_features = cell_features(model, [render(scene) for scene in test_scenes])
    train_classes = cell_classes(train_scenes)
    test_classes = cell_classes(test_scenes)
    is_empty = test_classes[0].flatten() == 0
    shares: dict[str, float] = {}
    names = ("kind", "colour", "number")
    for name, fitted, expected in zip(names, train_classes, test_classes, strict=True):
        head = fit_linear(train_features, fitted.flatten(), int(fitted.max()) + 1)
        read = head(test_features).argmax(-1)
        right = (read == expected.flatten()).float()
        shares[name] = right[~is_empty].mean().item()
        if name == "kind":
            shares["empty"] = right[is_empty].mean().item()
            shares["absent_partners"] = _seen(test_scenes, read)
    return shares


def _seen(scenes: Sequence[Scene], read: Tensor) -> float:
    """Of the absent partners, the share that is read in any cell."""
    num_absent = 0
    num_seen = 0
    rows = read.reshape(-1, NUM_CELLS).tolist()
    for scene, row in zip(scenes, rows, strict=True):
        for partner in scene.absent_partners:
            num_absent += 1
            num_seen += 1 + KINDS.index(partner) in row
    return num_seen / num_absent


def caption_shares(scenes: Sequence[Scene], texts: Sequence[str]) -> dict[str, float]:
    """Errors of one caption per scene, as shares of what they say; see docs/world2.md."""
    counts: Counter[str] = Counter()
    num_absent = 0
    for scene, text in zip(scenes, texts, strict=True):
        comparison = compare(text, scene)
        made_up = [claim for claim in comparison.claims if claim.thing is None]
        counts["mentions"] += len(comparison.claims)
        counts["made_up"] += len(made_up)
        counts["missed"] += len(comparison.missed)
        counts["things"] += len(scene.things)
        counts["words"] += len(text.split())
        for claim in comparison.claims:
            counts["repeated"] += claim.repeated
            counts.update(f"said/{part}" for part in claim.said)
            counts.update(f"wrong/{part}" for part in claim.wrong)
        num_absent += len(scene.absent_partners)
        named = {claim.mention.kind for claim in made_up}
        counts["partners"] += len(named.intersection(scene.absent_partners))
    shares = {
        "recall": 1 - counts["missed"] / counts["things"],
        "chair_i": counts["made_up"] / max(counts["mentions"], 1),
        "repeated": counts["repeated"] / max(counts["mentions"], 1),
        "absent_partners": counts["partners"] / max(num_absent, 1),
        "words": counts["words"] / len(scenes),
    }
    for part in ("colour", "number", "place", "relation"):
        shares[part] = counts[f"wrong/{part}"] / max(counts[f"said/{part}"], 1)
    return shares


def sayings(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    bias: Bias | None = None,
) -> dict[str, float]:
    """What the policy's greedy captions and answers about test scenes get wrong."""
    model.eval()
    scenes = split_scenes("test", count, seed=7, bias=bias)
    texts = _answers(model, tokenizer, scenes, [[CAPTION]] * count)
    shares = caption_shares(scenes, texts)
    for split in POPE_SPLITS:
        asked = [pope_questions(scene, split) for scene in scenes]
        shares[f"pope/{split}"] = _accuracy(model, tokenizer, scenes, asked)
    for about in ("colour", "place", "number"):
        asked = [[ask(about, scene.kinds[0])] for scene in scenes]
        shares[f"asked/{about}"] = _accuracy(model, tokenizer, scenes, asked)
    return shares


def validation_captions(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    count: int = 80,
) -> dict[str, float]:
    """`caption_shares` of greedy captions of unbiased validation scenes; the model is left in training mode."""
    model.eval()
    scenes = split_scenes("validation", count, seed=3)
    texts = _answers(model, tokenizer, scenes, [[CAPTION]] * count)
    model.train()
    return caption_shares(scenes, texts)


def mixed_share(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    count: int = 200,
) -> float:
    """Of the test scenes with an absent partner, those that get different captions in `NUM_SAMPLES` samples."""
    scenes = split_scenes("test", count, seed=7)
    tempting = [scene for scene in scenes if scene.absent_partners][:MAX_TEMPTING]
    asked = [[CAPTION]] * len(tempting)
    samples = []
    for _ in range(NUM_SAMPLES):
        samples.append(_answers(model, tokenizer, tempting, asked, temperature=1.0))
    num_mixed = 0
    for index, scene in enumerate(tempting):
        named = set()
        for texts in samples:
            claims = compare(texts[index], scene).claims
            named.add(any(claim.thing is None for claim in claims))
        num_mixed += len(named) > 1
    return num_mixed / len(tempting)


def _answers(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    scenes: Sequence[Scene],
    asked: Sequence[Sequence[Question]],
    temperature: float = 0.0,
) -> list[str]:
    """The answers to all questions of all scenes, in order."""
    from common.tabletop.render import render
    from common.worlds.decode import generate

    images = []
    texts = []
    for scene, questions in zip(scenes, asked, strict=True):
        image = render(scene)
        for question in questions:
            images.append(image)
            texts.append(question.text)
    return generate(model, tokenizer, images, texts, temperature=temperature)


def _accuracy(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    scenes: Sequence[Scene],
    asked: Sequence[Sequence[Question]],
) -> float:
    """Share of right answers; of a yes/no answer only the first word counts."""
    answers = iter(_answers(model, tokenizer, scenes, asked))
    num_right = 0
    num_asked = 0
    for scene, questions in zip(scenes, asked, strict=True):
        for question in questions:
            expected = answer(question, scene)
            text = next(answers)
            if question.about == "yes_no":
                expected, text = expected.split(",")[0], text.split(",")[0]
            num_right += text == expected
            num_asked += 1
    return num_right / num_asked


def main(argv: list[str] | None = None) -> None:
    """The command at the top."""
    parser = argparse.ArgumentParser(
        prog="python -m common.tabletop.probe", description=__doc__
    )
    parser.add_argument("--policy", type=Path, default=POLICY)
    parser.add_argument("--scenes", type=int, default=400, help="test scenes")
    arguments = parser.parse_args(argv)

    # Here, so that --help loads nothing heavy.
    import torch
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    from common.tabletop.training import CONTINUED, train_text

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LlavaForConditionalGeneration.from_pretrained(arguments.policy)
    tokenizer = AutoTokenizer.from_pretrained(arguments.policy)
    numbers: dict[str, Any] = {
        "sight": sight(model),
        "unbiased": sayings(model, tokenizer, arguments.scenes),
        "biased": sayings(model, tokenizer, arguments.scenes, TRAIN_BIAS),
        "mixed_share": mixed_share(model, tokenizer),
    }
    train_text(model, tokenizer, CONTINUED, seed=5)
    numbers["continued_sft"] = sayings(model, tokenizer, arguments.scenes)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
