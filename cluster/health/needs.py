"""What a run needs of a machine, by its plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cluster.health.finding import Finding
from cluster.placement.bundles import missing_models, plan
from common.config import RunConfig
from common.errors import UserError, plain_message


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes and devices.

    Attributes:
        shared_memory, object_store: of the fullest node, at a publish.
        disk: of run.dir.
        cpus, gpus: of all actors.
        nodes: that they fill.
        environment: variables that all actors get.
    """

    shared_memory: float
    object_store: float
    disk: float
    cpus: float
    gpus: float
    nodes: int
    environment: Mapping[str, str]


def needs_of(config: RunConfig) -> Needs:
    """The figures that --dry-run shows.

    Raises:
        UserError: a model's config is not here, or cannot be used.
    """
    missing = missing_models(config)
    if missing:
        raise UserError(
            f"plan: expected {missing[0]}/config.json on this machine, got none; run the doctor where the model is"
        )
    from cluster.planner.plan import kind_of, plan_run

    nodes = plan_run(config, kind_of(config)).nodes
    bundles = plan(config)
    return Needs(
        shared_memory=nodes.shared_memory,
        object_store=nodes.object_store,
        disk=nodes.disk,
        cpus=sum(bundle.num_cpus for bundle in bundles),
        gpus=sum(bundle.num_gpus for bundle in bundles if not bundle.beside),
        nodes=nodes.count,
        environment=config.cluster.env,
    )


def planned_needs(config: RunConfig) -> tuple[Needs | None, list[Finding]]:
    """The needs of a run, or why they are not known."""
    try:
        return needs_of(config), []
    except UserError as error:
        message, _, remedy = plain_message(error).rpartition("; ")
        return None, [Finding("plan", message, remedy)]


def check_plan(config: RunConfig) -> Iterator[Finding]:
    """Whether the run fits its GPUs, as --dry-run says it."""
    from cluster.planner.check import problems_of
    from cluster.planner.plan import kind_of, plan_run

    run_plan = plan_run(config, kind_of(config))
    problems = list(problems_of(config, run_plan, ()))
    for problem in problems:
        yield Finding(
            "plan", problem, "`cluster.train --dry-run` names what gives room", True
        )
    if not problems:
        name = run_plan.kind.name if run_plan.kind else "this machine"
        yield Finding("plan", f"fits, by what is known of {name}")
