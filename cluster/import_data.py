"""Imports published preference sets, exports ours, and shows what one is made of.

    python -m cluster.import_data povid POVID.json --images coco/train2017 --out data/povid
    python -m cluster.import_data export data/povid --out data/povid-trl
    python -m cluster.import_data inspect data/povid --out povid.html

Every row that is not used is counted under its reason. Killed and run again, an import goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster import inspect_job
from cluster.entry import exit_status
from common.importers import NAMES

EXPORT, INSPECT = "export", "inspect"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the set is complete, else as cluster.entry says."""
    arguments = build_parser().parse_args(argv)
    return exit_status(
        lambda: run(arguments), "stopped; run the same command again to go on"
    )


def run(arguments: argparse.Namespace) -> None:
    """What the command line asks for (UserError)."""
    if arguments.command == EXPORT:
        from cluster.export_job import export_set

        export_set(arguments.directory, arguments.out)
    elif arguments.command == INSPECT:
        inspect_job.run(arguments)
    else:
        from cluster.import_job import ImportJob, import_set

        import_set(
            ImportJob(
                arguments.command,
                arguments.path,
                arguments.out,
                arguments.images,
                arguments.count,
                arguments.strip_prefix,
            )
        )


def build_parser() -> argparse.ArgumentParser:
    """One command per importer, and those that work on sets of ours."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.import_data", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="NAME", title="NAME is one of"
    )
    for name, summary in NAMES.items():
        command = commands.add_parser(
            name, help=summary, description=f"Imports {summary}."
        )
        command.add_argument(
            "path",
            type=Path,
            metavar="PATH",
            help="the published file, or the folder that holds it",
        )
        command.add_argument(
            "--out",
            type=Path,
            required=True,
            metavar="DIR",
            help="folder of the set to make",
        )
        command.add_argument(
            "--images",
            type=Path,
            metavar="ROOT",
            help="folder that image paths are below; default: the one of PATH",
        )
        command.add_argument(
            "--strip-prefix",
            default="",
            metavar="PREFIX",
            help="cut this off the front of image paths",
        )
        command.add_argument(
            "--count", type=int, metavar="N", help="read at most N rows"
        )
    export = commands.add_parser(
        EXPORT,
        help="a set of ours as TRL's VLM preference parquet",
        description=(
            "Writes OUT/train.parquet in TRL's VLM preference format; `trl` imports it back without loss."
        ),
    )
    export.add_argument(
        "directory", type=Path, metavar="DIR", help="folder of a pair set"
    )
    export.add_argument(
        "--out", type=Path, required=True, metavar="OUT", help="folder to write"
    )
    inspect = commands.add_parser(
        INSPECT, help="what a set of ours is made of, as a page and JSON"
    )
    inspect_job.add_arguments(inspect)
    return parser


if __name__ == "__main__":
    sys.exit(main())
