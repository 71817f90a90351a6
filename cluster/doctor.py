"""Checks what this machine has and what sightline needs, and says what to do: `python -m cluster.doctor [PRESET]`.

With a preset or config keys it also checks what that run needs: its plan, its model, shared memory, the disk of
run.dir. With cluster.address it asks every node of the cluster: packages, code, model, shared folders, clocks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.entry import (
    PRESET_HELP,
    command_parser,
    exit_status,
    expand_paths,
    parse_line,
)
from cluster.health.facts import Facts, facts_of_machine
from cluster.health.finding import Finding
from cluster.health.gpus import check_gpus, gpu_lines, wheels_cuda
from cluster.health.machine import (
    MIN_DISK,
    MIN_SHARED_MEMORY,
    check_disk,
    check_machine,
    check_packages,
    check_ports,
    check_python,
    check_shared_memory,
)
from cluster.health.network import check_network, nccl_version

if TYPE_CHECKING:
    from cluster.health.needs import Needs
    from common.config import Model, RunConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; status 1 when something is to be solved first, 2 on bad input."""
    options, overrides = parse_line(_parser(), arguments)

    def call() -> int:
        expand_paths(options)
        config = _config(options.preset, overrides)
        findings = list(_findings(config, options.quick))
        if options.json:
            print(_json(findings))
        else:
            _print(findings, is_general=config is None)
        return int(any(finding.is_fatal for finding in findings))

    return exit_status(call, "interrupted")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "python -m cluster.doctor",
        __doc__ or "",
        "config keys, such as --model.path DIR or --cluster.address auto, are those of `cluster.train --help`",
    )
    parser.add_argument("preset", type=Path, nargs="?", help=PRESET_HELP)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of a table"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="leave out what takes seconds: an all-reduce of two processes, and imports on the nodes",
    )
    return parser


def _config(preset: Path | None, overrides: Sequence[str]) -> RunConfig | None:
    """The run to check for; None where the machine alone is asked about."""
    if preset is None and not overrides:
        return None
    from common.config.jobs import JobConfig
    from common.config.overrides import load

    return load(JobConfig, preset, overrides)


def _findings(config: RunConfig | None, is_quick: bool) -> Iterator[Finding]:
    facts = facts_of_machine()
    yield check_python()
    yield from check_packages(facts)
    yield from check_gpus(facts.nvidia_smi, wheels_cuda())
    yield from check_machine(facts)
    yield check_disk(Path.cwd(), MIN_DISK)
    yield check_disk(Path("/tmp"), MIN_DISK)
    if config is None:
        memory = facts.shared_memory
        yield check_shared_memory(memory, MIN_SHARED_MEMORY, "the demo", False)
    else:
        yield from _run_findings(config, facts, is_quick)
    yield from check_network(facts, nccl_version(), False, os.environ)
    if not is_quick:
        from cluster.health.all_reduce import check_all_reduce

        yield check_all_reduce(len(gpu_lines(facts.nvidia_smi)))
    yield from check_ports()


def _run_findings(
    config: RunConfig,
    facts: Facts,
    is_quick: bool,
) -> Iterator[Finding]:
    """What a run needs, here and on its nodes."""
    from cluster.health.needs import check_plan, planned_needs

    yield from check_model(config.model)
    needs, problems = planned_needs(config)
    yield from problems
    if needs is not None:
        yield from check_plan(config)
        yield check_disk(config.run.dir.resolve(), needs.disk, " for run.dir")
    if config.cluster.address:
        yield from _cluster_findings(config, needs, is_quick)
    elif needs is not None:
        # Elsewhere the nodes are asked.
        memory = facts.shared_memory
        yield check_shared_memory(memory, needs.shared_memory, "a push", True)


def _cluster_findings(
    config: RunConfig,
    needs: Needs | None,
    is_quick: bool,
) -> Iterator[Finding]:
    from cluster.health.nodes import CODE, MODULES, check_cluster, look_at, model_paths
    from cluster.runtime.ray_runtime import RayRuntime
    from common.errors import UserError, plain_message

    try:
        runtime = RayRuntime(config.cluster)
    except UserError as error:
        message, _, remedy = plain_message(error).partition("; ")
        yield Finding("cluster", message, remedy, is_fatal=True)
        return
    try:
        cluster = look_at(runtime, config, CODE if is_quick else MODULES)
    finally:
        runtime.shutdown()
    yield from check_cluster(cluster, model_paths(config), needs)


def check_model(model: Model) -> Iterator[Finding]:
    """What the proof of a model directory finds, as `cluster.train` would before it starts."""
    from common.chat import encoder_of
    from common.chat.facts import facts_of
    from common.chat.known_models import check_engine_knows
    from common.chat.weights import check_embedding
    from common.errors import UserError, plain_message

    try:
        encoder = encoder_of(model)
        check_embedding(encoder)
        encoder.warnings += check_engine_knows(
            encoder.config, encoder.processor, encoder.where
        )
    except UserError as error:
        yield _model_finding(plain_message(error), is_fatal=True)
        return
    yield Finding("model", model.path)
    for name, state in facts_of(encoder).items():
        yield Finding(name, state)
    for warning in encoder.warnings:
        yield _model_finding(warning.removeprefix(f"{encoder.where}: "))


def _model_finding(message: str, is_fatal: bool = False) -> Finding:
    """A line of the proof; what to do stands behind its last semicolon, where it has one."""
    problem, semicolon, remedy = message.rpartition("; ")
    if not semicolon:
        problem, remedy = message, "see there"
    return Finding("model", problem, remedy, is_fatal)


def _print(findings: Sequence[Finding], is_general: bool) -> None:
    """The report as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "what")
    for heading in ("found", "what to do"):
        # Paths are longer than a column.
        table.add_column(heading, overflow="fold")
    for finding in findings:
        # Text, not markup: templates write words such as [INST].
        state, remedy = Text(finding.state), Text(finding.remedy)
        table.add_row(finding.level, finding.name, state, remedy)
    Console().print(table)
    num_fatal = sum(finding.is_fatal for finding in findings)
    if num_fatal:
        print(f"{num_fatal} problem(s) to solve first")
    else:
        print("ready: try `make demo`" if is_general else "ready")


def _json(findings: Sequence[Finding]) -> str:
    """The report as one JSON object."""
    checks = []
    for finding in findings:
        checks.append(
            {
                "check": finding.name,
                "level": finding.level,
                "state": finding.state,
                "remedy": finding.remedy,
            }
        )
    is_ready = not any(finding.is_fatal for finding in findings)
    return json.dumps({"ready": is_ready, "checks": checks}, indent=1)


if __name__ == "__main__":
    sys.exit(main())
