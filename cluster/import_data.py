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

from cluster.entry import (
    add_preset,
    command_parser,
    exit_status,
    expand_paths,
    parse_line,
)
from cluster.flags import EXPORT_FLAGS, IMPORT_FLAGS, INSPECT_FLAGS
from common.config.flags import Flag, add_flags, given_flags
from common.config.jobs import ExportConfig, ImportConfig, InspectConfig, JobConfig
from common.config.overrides import describe_keys, load
from common.importers import NAMES

JOBS: dict[str, tuple[str, type[JobConfig], tuple[Flag, ...]]] = {
    "export": (
        "a set of ours as TRL's VLM preference parquet, OUT/train.parquet; `trl` imports it back without loss",
        ExportConfig,
        EXPORT_FLAGS,
    ),
    "inspect": (
        "what a set of ours is made of, as a page and JSON",
        InspectConfig,
        INSPECT_FLAGS,
    ),
}
"""Commands on sets of ours -> summary, config tree and short flags. Every other command is the name of an importer."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the set is complete, else as cluster.entry says."""
    return exit_status(
        lambda: run(config_of(argv)), "stopped; run the same command again to go on"
    )


def config_of(argv: Sequence[str] | None = None) -> JobConfig:
    """The config that a command line asks for (UserError as `load`)."""
    arguments, overrides = parse_line(build_parser(), argv)
    expand_paths(arguments)
    name = arguments.command
    if name in JOBS:
        _, schema, flags = JOBS[name]
        given = given_flags(arguments, flags)
    else:
        schema, flags = ImportConfig, IMPORT_FLAGS
        given = given_flags(arguments, flags)
        given[Flag(name, "import_data.name", "")] = name
    return load(schema, arguments.preset, overrides, given, flags)


def build_parser() -> argparse.ArgumentParser:
    """The command line: a subcommand per importer, and those that work on sets of ours."""
    parser = command_parser("python -m cluster.import_data", __doc__ or "")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="NAME", title="NAME is one of"
    )
    for name, summary in NAMES.items():
        _add_command(commands, name, f"imports {summary}", ImportConfig, IMPORT_FLAGS)
    for name, (summary, schema, flags) in JOBS.items():
        _add_command(commands, name, summary, schema, flags)
    return parser


def _add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    schema: type[JobConfig],
    flags: tuple[Flag, ...],
) -> None:
    command = commands.add_parser(
        name,
        help=summary.removeprefix("imports "),
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"config keys:\n{describe_keys(schema)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(command, flags)
    add_preset(command)


def run(config: JobConfig) -> None:
    """Do what the command line asks for (UserError when an input is wrong)."""
    if isinstance(config, ExportConfig):
        from cluster.jobs.export_job import export_set

        export_set(config.export.directory, config.export.out)
    elif isinstance(config, InspectConfig):
        from cluster.inspect import job as inspect_job

        inspect_job.run(config.inspect)
    elif isinstance(config, ImportConfig):
        from cluster.jobs.import_job import import_set

        import_set(config.import_data)


if __name__ == "__main__":
    sys.exit(main())
