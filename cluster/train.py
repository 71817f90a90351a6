"""Align a policy: `python -m cluster.train PRESET.toml [--section.key value …]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.entry import (
    PRESET_HELP,
    command_parser,
    exit_status,
    expand_paths,
    parse_line,
)
from cluster.placement.bundles import describe, missing_models, plan
from common.command_line.log_lines import start_lines
from common.config.overrides import describe_keys, load_config

if TYPE_CHECKING:
    from common.config import RunConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Status 0 on success, 1 on a failed run, 2 on bad input, 130 when interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    options, overrides = parse_line(_parser(), words)
    start_lines("controller")

    def call() -> int:
        if options.auto_resume:
            from cluster.auto_resume import run_again, without_option

            command = [sys.executable, "-m", "cluster.train", *without_option(words)]
            return run_again(command, options.auto_resume)
        expand_paths(options)
        config = load_config(options.preset, overrides)
        if options.dry_run:
            _dry_run(config, options.out)
        else:
            _run(config, options.resume)
        return 0

    return exit_status(call, "interrupted; --resume continues from the last checkpoint")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "python -m cluster.train",
        "Online, offline or mixed DPO of a multimodal model on Ray, vLLM and DeepSpeed.",
        f"config keys:\n{describe_keys()}",
    )
    parser.add_argument("preset", type=Path, nargs="?", help=PRESET_HELP)
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in run.dir, or start it"
    )
    parser.add_argument(
        "--auto-resume",
        type=int,
        default=0,
        metavar="N",
        help="start again with --resume, up to N times, when the process has died or the run has failed",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print which actor gets which CPUs and GPUs, what memory and time that takes, and stop",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="of --dry-run: write the plan there, as JSON",
    )
    return parser


def _dry_run(config: RunConfig, out: Path | None) -> None:
    """Print the placement, and the plan of memory and work where the models' config files are here.

    Raises:
        UserError: the run cannot fit, or a model that is here cannot be used.
    """
    _check_model_here(config)
    print(describe(plan(config)))
    missing = missing_models(config)
    if missing:
        print(
            f"memory: not planned, since {missing[0]}/config.json is missing",
            file=sys.stderr,
        )
        return
    from cluster.planner.check import dry_run

    print()
    dry_run(config, out)


def _check_model_here(config: RunConfig) -> None:
    """Prove the model directory as a run does, unless it is elsewhere or has configuration files alone."""
    path = Path(config.model.path)
    suffixes = {path.suffix, *(file.suffix for file in path.glob("*"))}
    if suffixes.isdisjoint((".safetensors", ".bin", ".gguf", ".pt", ".pth")):
        return
    from common.chat import check_model

    check_model(config.model)


def _run(config: RunConfig, resume: bool) -> None:
    from cluster.library import train
    from cluster.report import print_report

    run = train(config, resume)
    print_report(run.path)


if __name__ == "__main__":
    sys.exit(main())
