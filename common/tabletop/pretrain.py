"""Make the tiny policy of world 2 from random weights: `python -m common.tabletop.pretrain --out DIR`.

random LLaVA -> vision encoder on cell classes of unbiased scenes -> questions -> conversations about biased scenes ->
directory. What it must be like stands in docs/world2.md; `python -m common.tabletop.probe` measures it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

DEFAULT_OUT = Path(__file__).parent / "policy"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m common.tabletop.pretrain", description=__doc__
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        help="directory to write (default: the shipped one)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="cores torch may take")
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="compute in bfloat16, which is several times faster where the processor has AMX",
    )
    for stage in ("tower", "question", "text"):
        parser.add_argument(
            f"--{stage}-steps", type=int, help="instead of the recipe's"
        )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """The command at the top."""
    args = parse_args(argv)

    # Here, so that --help loads nothing heavy.
    import torch

    from common.tabletop.model import build_model, build_tokenizer, save
    from common.tabletop.probe import sight
    from common.tabletop.training import (
        QUESTION_STAGE,
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
    precision = torch.autocast("cpu", torch.bfloat16, enabled=args.bf16)
    with precision:
        train_tower(model, replace(TOWER_STAGE, steps=tower_steps), args.seed)
    print(json.dumps({"sight": sight(model)}), flush=True)
    text_stages = (
        (QUESTION_STAGE, args.question_steps),
        (TEXT_STAGE, args.text_steps),
    )
    for stage, steps in text_stages:
        chosen = replace(stage, steps=steps or stage.steps)
        with precision:
            train_text(model, tokenizer, chosen, args.seed)
    save(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
