"""Makes offline preference pairs.

    python -m cluster.generate bdhs --out data/bdhs --count 2000

Killed and run again it goes on where it stopped. Words of the form `--section.key value` override the config of the
rollout workers, as for `python -m cluster.train`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the set is complete, 2 after a one-line message on what the user should change."""
    arguments, overrides = build_parser().parse_known_args(argv)

    from common.errors import UserError

    try:
        from cluster.bdhs_job import job_of, run

        run(job_of(arguments, overrides))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line. Defaults that belong to the config are None here."""
    parser = argparse.ArgumentParser(prog="python -m cluster.generate", description=(__doc__ or "").split("\n")[0])
    methods = parser.add_subparsers(dest="method", required=True)
    bdhs = methods.add_parser(
        "bdhs", help="rejected answers from the policy's own bias (arXiv 2407.02477, section 3.4)"
    )
    bdhs.add_argument("--out", type=Path, required=True, help="folder of the pair set")
    bdhs.add_argument("--model", help="policy, a Hugging Face folder; default: the shapes world's")
    bdhs.add_argument("--preset", type=Path, help="TOML preset that configures the rollout workers")
    bdhs.add_argument(
        "--prompts", type=Path, help="folder with prompts.parquet, with references; default: shapes world"
    )
    bdhs.add_argument("--count", type=int, help="how many prompts; default 1000 scenes, or all of --prompts")
    bdhs.add_argument("--seed", type=int, default=0, help="of scenes, masks, cuts and samples")
    bdhs.add_argument("--rho", type=float, help="share of image tokens hidden; must fit the model")
    bdhs.add_argument("--attempts", type=int, help="at most so many; the last one is unguided")
    bdhs.add_argument("--threshold", type=float, help="accept rejected answers less similar than this")
    bdhs.add_argument("--temperature", type=float, help="of sampling")
    bdhs.add_argument("--similarity", default="lexical", help="lexical, or a sentence-transformers model")
    bdhs.add_argument("--workers", type=int, help="rollout workers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
