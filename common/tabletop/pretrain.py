"""Make the tiny policy of world 2: `python -m common.tabletop.pretrain --out DIR`.

the shapes world's policy -> vision encoder on cell classes of unbiased scenes -> captions and questions about unbiased
scenes -> conversations about biased scenes -> directory

What it must be like stands in docs/world2.md; `python -m common.tabletop.probe` measures it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from common.worlds.pretraining import parser_of

DEFAULT_OUT = Path(__file__).parent / "policy"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    stages = ("tower", "align", "text")
    parser = parser_of("common.tabletop.pretrain", __doc__, DEFAULT_OUT, stages)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """The command at the top."""
    args = parse_args(argv)

    # Here, so that --help loads nothing heavy.
    import torch

    from common.tabletop.model import build_model, build_tokenizer, save
    from common.tabletop.probe import sight, validation_captions
    from common.tabletop.training import (
        ALIGN_STAGE,
        TEXT_STAGE,
        TOWER_STAGE,
        train_text,
        train_tower,
    )

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    model.train()
    tower_steps = args.tower_steps or TOWER_STAGE.steps
    train_tower(model, replace(TOWER_STAGE, steps=tower_steps), args.seed)
    print(json.dumps({"sight": sight(model)}), flush=True)

    def watch() -> None:
        shares = validation_captions(model, tokenizer)
        print(json.dumps({"validation": shares}), flush=True)

    align = replace(ALIGN_STAGE, steps=args.align_steps or ALIGN_STAGE.steps)
    train_text(model, tokenizer, align, args.seed, bias=None, watch=watch)
    text = replace(TEXT_STAGE, steps=args.text_steps or TEXT_STAGE.steps)
    train_text(model, tokenizer, text, args.seed, watch=watch)
    watch()
    save(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
