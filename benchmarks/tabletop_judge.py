"""Teaches world 2's policy to look: the VLM judge of benchmarks/paper_arms.py, stronger than the start policy.

    python -m benchmarks.tabletop_judge --dir runs/tabletop_judge     # some minutes; killed, it goes on

It learns the true answers to yes/no questions about *unbiased* scenes of the training split, which no method trains on,
by the loss `sft`. Prints the scorecard beside the start policy's: POPE on test scenes says how good a judge it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.arm_runs import call
from common.data.datasets import IMAGES, write_pairs
from common.data.images import ImageStore
from common.data.pair_writer import spec_of
from common.records import PreferencePair, Response
from common.tabletop.corrupter import corrupt
from common.tabletop.prompts import pope_prompts

SEED = 1
"""Of the judge's scenes. Those of the evaluation suites have seed 0."""
PRESET = "cluster/configs/tabletop_offline.toml"


def question_pairs(num_scenes: int, store: ImageStore) -> list[PreferencePair]:
    """The true answer over the other one, for six questions a scene, half of them about something present."""
    pairs = []
    for prompt in pope_prompts("train", num_scenes, SEED, store):
        other = corrupt(prompt, "reasoning", SEED)
        assert isinstance(other, str), "references of unbiased scenes are true"
        chosen = Response(prompt.reference or "")
        pair = PreferencePair(prompt.id, prompt, chosen, Response(other), "questions")
        pairs.append(pair)
    return pairs


def write_questions(num_scenes: int, folder: Path) -> None:
    """The pair set, unless it is there."""
    if spec_of(folder) is None:
        pairs = question_pairs(num_scenes, ImageStore(folder / IMAGES))
        write_pairs(folder, pairs, {"scenes": num_scenes}, {"num_pairs": len(pairs)})


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tabletop_judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dir", type=Path, default=Path("runs/tabletop_judge"))
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    questions = arguments.dir / "questions"
    write_questions(arguments.scenes, questions)
    run_dir = arguments.dir / "run"
    call(
        [
            *("cluster.train", PRESET, "--resume", "--run.dir", run_dir),
            *("--data.offline.path", questions, "--learner.loss.kind", "sft"),
            *("--learner.num_steps", arguments.steps, "--learner.global_batch", 64),
            *("--learner.optimizer.lr", 5e-4, "--checkpoint.interval", 100),
            *("--evaluation.select", "pope_f1"),
        ]
    )
    print((run_dir / "scorecard.json").read_text())


if __name__ == "__main__":
    main()
