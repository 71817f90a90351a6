"""Makes offline preference pairs.

    python -m cluster.generate bdhs --out data/bdhs --count 2000
    python -m cluster.generate povid --out data/povid --endpoint http://localhost:8000/v1 --model-name NAME

Killed and run again it goes on where it stopped. Short flags stand for config keys (`cluster/flags.py`); words of the
form `--section.key value` set any other key, and `--preset` reads keys from a file, as for `python -m cluster.train`.
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
from cluster.flags import BDHS_FLAGS, POVID_FLAGS
from cluster.runtime.ray_job import check_output_path
from common.config.flags import Flag, add_flags, given_flags
from common.config.jobs import BdhsJobConfig, GenerateConfig, PovidJobConfig
from common.config.overrides import describe_keys, load

METHODS: dict[str, tuple[str, type[GenerateConfig], tuple[Flag, ...]]] = {
    "bdhs": (
        "rejected answers from the policy's own bias (arXiv 2407.02477, section 3.4)",
        BdhsJobConfig,
        BDHS_FLAGS,
    ),
    "povid": (
        "errors injected into true answers (arXiv 2402.11411, section 3.1)",
        PovidJobConfig,
        POVID_FLAGS,
    ),
}
"""Method -> what it makes, its config tree and its short flags."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the set is complete, else as cluster.entry says."""
    return exit_status(
        lambda: make_set(config_of(argv)), "stopped; the same command goes on from here"
    )


def config_of(argv: Sequence[str] | None = None) -> GenerateConfig:
    """The config that a command line asks for: a BdhsJobConfig or a PovidJobConfig (UserError as `load`)."""
    arguments, overrides = parse_line(build_parser(), argv)
    expand_paths(arguments)
    _, schema, flags = METHODS[arguments.method]
    given = given_flags(arguments, flags)
    return load(schema, arguments.preset, overrides, given, flags)


def build_parser() -> argparse.ArgumentParser:
    """The command line, a subcommand per method."""
    parser = command_parser("python -m cluster.generate", __doc__ or "")
    methods = parser.add_subparsers(dest="method", required=True)
    for name, (summary, schema, flags) in METHODS.items():
        method = methods.add_parser(
            name,
            help=summary,
            description=f"Makes pairs: {summary}.",
            epilog=f"config keys:\n{describe_keys(schema)}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_flags(method, flags)
        add_preset(method)
    return parser


def make_set(config: GenerateConfig) -> None:
    """Make the set that a config asks for (UserError when an input is wrong)."""
    check_output_path(config.generate.out, "--out")
    if isinstance(config, PovidJobConfig):
        from cluster.jobs import povid_job
        from cluster.runtime.proxies import check_proxies

        endpoint = config.povid.endpoint
        if endpoint is not None:
            check_proxies(endpoint.base_url, "--endpoint")
        povid_job.run(config)
    elif isinstance(config, BdhsJobConfig):
        from cluster.jobs import bdhs_job

        bdhs_job.run(config)


if __name__ == "__main__":
    sys.exit(main())
