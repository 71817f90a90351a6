"""The command line of the programs that make a world's policy."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path


def parser_of(
    module: str, description: str | None, default_out: Path, stages: Iterable[str]
) -> argparse.ArgumentParser:
    """`--out`, `--seed`, `--threads`, and `--STAGE-steps` for every stage."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=default_out,
        help="directory to write (default: the shipped one)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="cores torch may take")
    for stage in stages:
        parser.add_argument(
            f"--{stage}-steps", type=int, help="instead of the recipe's"
        )
    return parser
