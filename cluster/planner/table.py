"""A plan as a table to read, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from cluster.planner import gpu_kinds
from cluster.planner.gpu_kinds import GIB
from cluster.planner.knobs import Knob
from cluster.planner.plan import Plan
from cluster.planner.seats import Seat

ASSUMPTIONS = (
    f"assumed: {gpu_kinds.LEARNER_EFFICIENCY:.0%} of the peak in a step, "
    f"{gpu_kinds.PREFILL_EFFICIENCY:.0%} in reading prompts, "
    f"{gpu_kinds.DECODE_EFFICIENCY:.0%} of the memory's bandwidth in sampling, "
    f"{gpu_kinds.LINK_EFFICIENCY:.0%} of a link's, {gpu_kinds.PUSH_S_PER_GB:g} s per GB of a push; every row "
    "as long as the longest"
)


def describe_plan(
    plan: Plan,
    knobs: Sequence[Knob],
) -> str:
    """The table of a plan."""
    lines = [
        *_head(plan),
        "",
        *_seats(plan.seats),
        "",
        *_nodes(plan),
        "",
        *_work(plan),
        "",
        *_knobs(knobs),
    ]
    return "\n".join(lines).rstrip()


def plan_json(
    plan: Plan,
    knobs: Sequence[Knob],
    problems: Sequence[str],
) -> str:
    """The plan as one JSON object; bytes, FLOPs and seconds are plain numbers."""
    values: dict[str, Any] = asdict(plan)
    values["knobs"] = [asdict(knob) for knob in knobs]
    values["problems"] = list(problems)
    return json.dumps(values, indent=1)


def gib(num_bytes: float) -> str:
    """Bytes in GiB, for a column."""
    return f"{num_bytes / GIB:.2f}"


def _head(plan: Plan) -> Iterator[str]:
    rows = plan.rows
    yield (
        f"model    {plan.family}, {plan.numel / 1e9:.3f} B parameters, {plan.trained_numel / 1e9:.3f} B of them train"
    )
    together = "one row" if rows.shares_prompt else "two rows"
    yield (
        f"forward  {rows.pairs} pairs of a prompt of {rows.prompt} tokens and answers of {rows.completion}, "
        f"{together} each: {rows.tokens} tokens"
    )


def _seats(seats: Sequence[Seat]) -> Iterator[str]:
    """A column for every kind of actor."""
    parts: list[str] = []
    for seat in seats:
        for part in seat.parts:
            if part not in parts:
                parts.append(part)
    heads = []
    for seat in seats:
        heads.append(f"{seat.count} x {seat.role}")
    yield _line("GiB of every device", heads)
    for part in parts:
        cells = []
        for seat in seats:
            num_bytes = seat.parts.get(part, 0.0)
            cells.append(gib(num_bytes) if num_bytes else "-")
        yield _line(part, cells)
    yield _line("sum", [gib(seat.device_bytes) for seat in seats])
    yield _line("may take", [_limit(seat) for seat in seats])


def _limit(seat: Seat) -> str:
    if seat.limit is not None:
        return gib(seat.limit)
    return "?" if seat.gpus else "RAM"


def _nodes(plan: Plan) -> Iterator[str]:
    nodes = plan.nodes
    yield f"GiB of the fullest of {nodes.count} nodes"
    yield _line("RAM at the start", [gib(nodes.start)])
    yield _line("RAM at a publish", [gib(nodes.running)])
    yield _line("  and a checkpoint", [gib(nodes.saving)])
    yield _line("shared memory", [gib(nodes.shared_memory)])
    yield _line("  object store of it", [gib(nodes.object_store)])
    yield "GiB on disk"
    yield _line("a checkpoint", [gib(nodes.checkpoint)])
    yield _line("a policy", [gib(nodes.policy)])
    yield _line("all that is kept", [gib(nodes.disk)])
    yield "seconds of a checkpoint with a policy: from a GPU at 20 GB/s, the policy at 3; to disk at 1"
    yield _line("copied, steps wait", [f"{nodes.copy_s:.1f}"])
    yield _line("written beside them", [f"{nodes.write_s:.0f}"])


def _work(plan: Plan) -> Iterator[str]:
    work = plan.work
    yield _line("tokens of a step", [f"{work.tokens:,.0f}"])
    yield _line("FLOPs of a step", [f"{work.step_flops:.3g}"])
    yield _line("FLOPs of its rollouts", [f"{work.rollout_flops:.3g}"])
    yield _line("GB of a push", [f"{work.push_bytes / 1e9:.2f}"])
    yield _line("full rows in a cache", [f"{plan.full_sequences:.1f}"])
    seconds = plan.seconds
    if seconds is None or plan.kind is None:
        return
    yield f"seconds on {plan.kind.name}"
    yield _line("step", [f"{seconds.compute:.1f}"])
    yield _line("  communication", [f"{seconds.communication:.1f}"])
    yield _line("its rollouts", [f"{seconds.rollout:.1f}"])
    yield _line("a publish", [f"{seconds.push:.1f}"])
    yield _line("from step to step", [f"{seconds.total:.1f}"])
    yield ASSUMPTIONS


def _knobs(knobs: Sequence[Knob]) -> Iterator[str]:
    if not knobs:
        return
    yield "what would give memory, GiB of every device"
    for knob in knobs:
        yield f"{-knob.saved / GIB:>9.2f}  {knob.role:<9} {knob.change}"


def _line(
    name: str,
    cells: Sequence[str],
) -> str:
    columns = [f"{cell:>14}" for cell in cells]
    return f"{name:<22}{''.join(columns)}"
