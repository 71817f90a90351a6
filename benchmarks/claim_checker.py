"""Teaches world 2's policy to say whether a sentence is true of a picture: the VLM judge of benchmarks/paper_arms.py.

    python -m benchmarks.claim_checker --dir runs/claim_checker     # some minutes; killed, it goes on

Sentences are those of true answers and of answers with an error put in by rule, half of each, about *unbiased* scenes
of the training split, which no method trains on. The start policy learns "Yes" or "No" as their answers, by the loss
`sft`. It prints
the run's scorecard: `logp_accuracy` is how often the judge is right, on unbiased test scenes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.arm_runs import call
from common.config.povid import ErrorKind
from common.data.datasets import write_pairs
from common.data.images import ImageStore
from common.data.pair_writer import spec_of
from common.records import Message, Part, PreferencePair, Prompt, Response
from common.sentences import split_sentences
from common.tabletop.claims import compare
from common.tabletop.corrupter import CAPTION_KINDS, corrupt
from common.tabletop.prompts import (
    attribute_prompts,
    caption_prompts,
    pope_prompts,
)
from common.tabletop.scenes import Scene
from common.tabletop.truth import scene_of
from common.worlds.scenes import Split

TRAINING_SEED = 1
"""Of the judge's scenes. Seed 0 has those of the evaluation suites, of validation and test."""


def claim_pairs(
    split: Split, num_scenes: int, store: ImageStore
) -> list[PreferencePair]:
    """About a true and a false sentence for every error that an answer can have; the right reply is chosen."""
    pairs = []
    for prompt in _prompts(split, num_scenes, store):
        rng = random.Random(prompt.id)
        true_sentences = split_sentences(prompt.reference or "")
        for kind in (*CAPTION_KINDS, "reasoning"):
            false_sentences = _false_sentences(prompt, kind)
            if false_sentences:
                said = {"Yes": true_sentences, "No": false_sentences}
                for reply, sentences in said.items():
                    pairs.append(_pair(prompt, kind, rng.choice(sentences), reply))
    return pairs


def _prompts(split: Split, num_scenes: int, store: ImageStore) -> Iterator[Prompt]:
    """For every scene its caption, two yes/no questions, and questions about a colour, a place and a number."""
    seed = TRAINING_SEED
    yield from caption_prompts(split, num_scenes, seed, store)
    for prompt in pope_prompts(split, num_scenes, seed, store):
        if "/adversarial/" in prompt.id:
            yield prompt
    yield from attribute_prompts(split, num_scenes, seed, store)


def _false_sentences(prompt: Prompt, kind: ErrorKind) -> list[str]:
    """The false sentences of the answer with an error of this kind; none where it does not fit."""
    text = corrupt(prompt, kind, TRAINING_SEED)
    if not isinstance(text, str):
        return []
    sentences = split_sentences(text)
    if kind == "reasoning":
        return sentences
    # A caption with an error in it says true things as well.
    scene = scene_of(prompt)
    return [sentence for sentence in sentences if not is_true(sentence, scene)]


def is_true(sentence: str, scene: Scene) -> bool:
    """Whether everything that a sentence of a caption names is there as it is said."""
    claims = compare(sentence, scene).claims
    return all(claim.thing is not None and not claim.wrong for claim in claims)


def _pair(prompt: Prompt, kind: str, sentence: str, reply: str) -> PreferencePair:
    parts = (Part("image"), Part("text", sentence.strip()))
    id = f"{prompt.id}/{kind}/{reply}"
    asked = Prompt(id, (Message("user", parts),), prompt.images)
    other = "No" if reply == "Yes" else "Yes"
    return PreferencePair(id, asked, Response(reply), Response(other), source="claims")


def write_claims(split: Split, num_scenes: int, folder: Path) -> Path:
    """The pair set of a split, unless it is there."""
    if spec_of(folder) is None:
        pairs = claim_pairs(split, num_scenes, ImageStore(folder))
        spec = {"claims": split, "scenes": num_scenes}
        write_pairs(folder, pairs, spec, {"num_pairs": len(pairs)})
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claim_checker",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dir", type=Path, default=Path("runs/claim_checker"))
    parser.add_argument("--scenes", type=int, default=2500)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    train = write_claims("train", arguments.scenes, arguments.dir / "train")
    suite = {"kind": "preference"}
    for split in ("validation", "test"):
        suite[split] = str(write_claims(split, 250, arguments.dir / split))
    run_dir = arguments.dir / "run"
    call(
        [
            *("cluster.train", "cluster/configs/tabletop_offline.toml", "--resume"),
            *("--run.dir", run_dir, "--data.offline.path", train),
            *("--learner.loss.kind", "sft", "--learner.num_steps", arguments.steps),
            *("--learner.global_batch", 64, "--checkpoint.interval", 100),
            *("--evaluation.suites", json.dumps([suite])),
        ]
    )
    print((run_dir / "scorecard.json").read_text())


if __name__ == "__main__":
    main()
