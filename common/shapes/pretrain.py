"""Make the tiny policy from random weights: `python -m common.shapes.pretrain --out DIR` (about a quarter of an hour).

random LLaVA -> vision encoder on cell classes -> linear probe -> questions -> noisy captions -> directory, checks
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from common.worlds.pretraining import parser_of

DEFAULT_OUT = Path(__file__).parent / "policy"
MIN_PROBE_ACCURACY = 0.98


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    stages = ("tower", "question", "caption", "polish")
    parser = parser_of("common.shapes.pretrain", __doc__, DEFAULT_OUT, stages)
    parser.add_argument(
        "--noise", type=float, help="share of absent partners that training text names"
    )
    parser.add_argument(
        "--scenes", type=int, default=400, help="test scenes of the honesty checks"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # Here, so that --help loads nothing heavy.
    import torch

    from common.shapes.language import NOISE_SHARE
    from common.shapes.model import build_tokenizer
    from common.shapes.probe import honesty, probe_accuracy
    from common.shapes.render import IMAGE_SIZE
    from common.shapes.training import (
        CAPTION_STAGE,
        POLISH_STAGE,
        QUESTION_STAGE,
        TOWER_STAGE,
        train_text,
        train_tower,
    )
    from common.worlds.policy import build_processor, random_policy, save_policy

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = random_policy(tokenizer, IMAGE_SIZE)
    model.train()

    train_tower(
        model,
        replace(TOWER_STAGE, steps=args.tower_steps or TOWER_STAGE.steps),
        args.seed,
    )
    # A language model cannot say what the encoder does not show it: without sight the later stages are wasted.
    accuracy = probe_accuracy(model)
    print(
        f"linear probe: {accuracy:.4f} of occupied (or of empty) cells of unbiased test scenes read right"
    )
    if accuracy < MIN_PROBE_ACCURACY:
        raise SystemExit(
            f"linear probe must reach {MIN_PROBE_ACCURACY}, got {accuracy:.4f}: raise --tower-steps"
        )

    noise = NOISE_SHARE if args.noise is None else args.noise
    text_stages = (
        (QUESTION_STAGE, args.question_steps),
        (CAPTION_STAGE, args.caption_steps),
        (POLISH_STAGE, args.polish_steps),
    )
    for stage, steps in text_stages:
        chosen = replace(stage, steps=steps or stage.steps)
        train_text(model, tokenizer, chosen, args.seed, noise)
    save_policy(model, build_processor(tokenizer, IMAGE_SIZE), args.out)
    print(json.dumps(asdict(honesty(model, tokenizer, args.scenes)), indent=2))


if __name__ == "__main__":
    main()
