"""Makes offline preference pairs.

    python -m cluster.generate bdhs --out data/bdhs --count 2000
    python -m cluster.generate povid --out data/povid --endpoint http://localhost:8000/v1 --model-name NAME

Killed and run again it goes on where it stopped. For bdhs, words of the form `--section.key value` override the config
of the rollout workers, as for `python -m cluster.train`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cluster.entry import exit_status

if TYPE_CHECKING:
    Methods: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the set is complete, else as cluster.entry says."""
    arguments, overrides = build_parser().parse_known_args(argv)
    return exit_status(
        lambda: _run(arguments, overrides),
        "stopped; the same command goes on from here",
    )


def _run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    if arguments.method == "povid":
        from cluster import povid_job

        povid_job.run(povid_job.job_of(arguments, overrides))
    else:
        from cluster import bdhs_job

        bdhs_job.run(bdhs_job.job_of(arguments, overrides))


def build_parser() -> argparse.ArgumentParser:
    """The command line. Defaults that belong to the config are None here."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.generate", description=(__doc__ or "").split("\n")[0]
    )
    methods = parser.add_subparsers(dest="method", required=True)
    add_bdhs(methods)
    add_povid(methods)
    return parser


def add_bdhs(methods: Methods) -> None:
    bdhs = methods.add_parser(
        "bdhs",
        help="rejected answers from the policy's own bias (arXiv 2407.02477, section 3.4)",
    )
    bdhs.add_argument("--out", type=Path, required=True, help="folder of the pair set")
    bdhs.add_argument(
        "--model", help="policy, a Hugging Face folder; default: the shapes world's"
    )
    bdhs.add_argument(
        "--preset", type=Path, help="TOML preset that configures the rollout workers"
    )
    bdhs.add_argument(
        "--prompts",
        type=Path,
        help="folder with prompts.parquet, with references; default: shapes world",
    )
    bdhs.add_argument(
        "--count",
        type=int,
        help="how many scenes, or rows of --prompts; default 1000, or all",
    )
    bdhs.add_argument(
        "--seed", type=int, default=0, help="of scenes, masks, cuts and samples"
    )
    bdhs.add_argument(
        "--variant",
        help="attention (default), noise or unguided; see common/bdhs_config.py",
    )
    bdhs.add_argument(
        "--rho", type=float, help="share of image tokens hidden; must fit the model"
    )
    bdhs.add_argument(
        "--attempts", type=int, help="at most so many; the last one is unguided"
    )
    bdhs.add_argument(
        "--threshold", type=float, help="accept rejected answers less similar than this"
    )
    bdhs.add_argument("--temperature", type=float, help="of sampling")
    bdhs.add_argument(
        "--similarity",
        default="lexical",
        help="lexical, or a sentence-transformers model",
    )
    bdhs.add_argument("--workers", type=int, help="rollout workers")


def add_povid(methods: Methods) -> None:
    povid = methods.add_parser(
        "povid",
        help="errors injected into true answers (arXiv 2402.11411, section 3.1)",
    )
    povid.add_argument("--out", type=Path, required=True, help="folder of the pair set")
    povid.add_argument(
        "--endpoint", help="OpenAI-compatible, such as http://localhost:8000/v1"
    )
    povid.add_argument("--model-name", help="which of the endpoint's models")
    povid.add_argument(
        "--corrupter",
        choices=["rules"],
        help="instead of an endpoint: the rules of the shapes world",
    )
    povid.add_argument(
        "--prompts",
        type=Path,
        help="folder with prompts.parquet, with references; default: shapes world",
    )
    povid.add_argument(
        "--count",
        type=int,
        help="how many scenes, or rows of --prompts; default 1000, or all",
    )
    povid.add_argument("--seed", type=int, default=0, help="of scenes, kinds and rules")
    povid.add_argument(
        "--kinds",
        help="some of entity,attribute,relation,reasoning; each prompt draws one that suits",
    )
    povid.add_argument(
        "--every-kind",
        action="store_true",
        help="a pair of every kind that suits the prompt",
    )
    povid.add_argument(
        "--max-length-ratio",
        type=float,
        help="refuse answers so many times longer or shorter",
    )
    povid.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="environment variable of the key; default OPENAI_API_KEY",
    )
    povid.add_argument(
        "--send-image",
        action="store_true",
        help="show the image to the endpoint's model",
    )
    povid.add_argument("--temperature", type=float, help="of sampling")
    povid.add_argument("--max-tokens", type=int, help="of one rewritten answer")
    povid.add_argument(
        "--max-tokens-key",
        help="max_tokens, or max_completion_tokens where that is what it is called",
    )
    povid.add_argument("--concurrency", type=int, help="requests in flight")
    povid.add_argument("--timeout", type=float, help="seconds of one request")
    povid.add_argument("--retries", type=int, help="of a request that failed")
    povid.add_argument("--price-in", type=float, help="per million prompt tokens")
    povid.add_argument("--price-out", type=float, help="per million completion tokens")


if __name__ == "__main__":
    sys.exit(main())
