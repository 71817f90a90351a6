"""Refuses, before anything starts, what cannot fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.planner.gpu_kinds import GIB
from cluster.planner.knobs import Knob, knobs_of
from cluster.planner.plan import Plan, kind_of, plan_run
from cluster.planner.seats import Seat
from cluster.planner.shape import Unplanned
from cluster.planner.table import describe_plan, plan_json
from common.config import RunConfig
from common.errors import UserError
from common.paths import replace_file

log = logging.getLogger("sightline")

MAX_KNOBS_NAMED = 3


def dry_run(
    config: RunConfig,
    out: Path | None = None,
) -> None:
    """Print the plan as a table, and write it to a file as JSON.

    Raises:
        UserError: the run cannot fit; the plan is printed and written all the same.
    """
    plan = plan_run(config, kind_of(config))
    knobs = knobs_of(config, plan)
    problems = list(problems_of(config, plan, knobs))
    if out is not None:
        replace_file(out, plan_json(plan, knobs, problems))
    print(describe_plan(plan, knobs))
    if problems:
        raise UserError(problems[0])


def check_fits(config: RunConfig) -> None:
    """Refuse (UserError) what cannot fit whatever the data is; warn of what the longest row has no room for."""
    try:
        plan = plan_run(config, kind_of(config))
    except Unplanned as error:
        log.warning(str(error))
        return
    if not list(problems_of(config, plan, ())):
        return
    # Only now: every setting is a plan of its own.
    knobs = knobs_of(config, plan)
    certain = list(problems_of(config, plan, knobs, certain=True))
    if certain:
        raise UserError(certain[0])
    for problem in problems_of(config, plan, knobs):
        log.warning(problem)


def problems_of(
    config: RunConfig,
    plan: Plan,
    knobs: Sequence[Knob],
    certain: bool = False,
) -> Iterator[str]:
    """One line for everything that does not fit.

    Args:
        certain: leave out what depends on the length of rows.
    """
    length = config.model.max_length
    if length > plan.positions:
        yield (
            f"model.max_length: expected at most {plan.positions} positions of the model, got {length}; lower it"
        )
    for seat in plan.seats:
        needed = seat.certain_bytes if certain else seat.device_bytes
        if seat.limit is None:
            continue
        if needed > seat.limit:
            yield _too_large(plan, seat, needed, knobs)
        elif seat.parts.get("KV cache") == 0:
            yield _no_cache(seat)
    if not config.cluster.address:
        yield from _too_little_ram(config, plan, certain)


def _too_large(
    plan: Plan,
    seat: Seat,
    needed: float,
    knobs: Sequence[Knob],
) -> str:
    assert plan.kind is not None and seat.limit is not None
    largest = max(seat.parts, key=lambda part: seat.parts[part])
    remedies = []
    for knob in knobs:
        if knob.role == seat.role:
            remedies.append(f"{knob.change} (-{knob.saved / GIB:.1f} GiB)")
    if largest == "KV cache":
        # It takes what it is given, and so it can be given less.
        remedies.insert(0, "a lower engine.gpu_memory_utilization")
    remedy = " or ".join(remedies[:MAX_KNOBS_NAMED])
    return (
        f"{seat.role}: expected at most {seat.limit / GIB:.1f} GiB of every {plan.kind.name}, got "
        f"{needed / GIB:.1f} GiB, most of it {largest} ({seat.parts[largest] / GIB:.1f} GiB); set "
        f"{remedy or 'a larger cluster.gpu'}"
    )


def _no_cache(seat: Seat) -> str:
    return (
        f"{seat.role}: expected room for a key-value cache beside {seat.parts['weights'] / GIB:.1f} GiB of weights, "
        "got none; raise engine.tensor_parallel_size with num_gpus, or engine.gpu_memory_utilization"
    )


def _too_little_ram(
    config: RunConfig,
    plan: Plan,
    certain: bool,
) -> Iterator[str]:
    """Only where all actors are on this machine."""
    nodes = plan.nodes
    needed = max(nodes.start, nodes.saving + nodes.shared_memory)
    if not any(seat.gpus for seat in plan.seats):
        needed = nodes.shared_memory + nodes.saving - nodes.running
        for seat in plan.seats:
            num_bytes = seat.certain_bytes if certain else seat.device_bytes
            needed += seat.count * num_bytes
    elif plan.kind is None or config.cluster.gpu is not None:
        # The GPUs are elsewhere.
        return
    memory = machine_memory()
    if needed > memory:
        yield (
            f"memory: expected at most {memory / GIB:.1f} GiB, which this machine has, got {needed / GIB:.1f} GiB "
            "for all actors; use a smaller model, fewer workers, or a cluster"
        )


def machine_memory() -> float:
    """Bytes of RAM that this process may use: the machine's, or its container's."""
    import psutil

    memory = float(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file():
        text = limit.read_text().strip()
        if text.isdigit():
            memory = min(memory, float(text))
    return memory
