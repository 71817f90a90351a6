"""Checks of every node of a Ray cluster, and of what differs between them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from cluster.health import facts as facts_module
from cluster.health.facts import Facts
from cluster.health.finding import Finding, gib
from cluster.health.gpus import check_gpus, wheels_cuda
from cluster.health.machine import check_open_files, check_shared_memory
from cluster.health.needs import Needs
from cluster.health.network import check_network, nccl_version
from cluster.runtime.judge_engines import judge_seats
from common.config import RunConfig

if TYPE_CHECKING:
    from cluster.runtime.ray_runtime import RayRuntime

CODE = ("cluster.train",)
MODULES = ("torch", "actors.vllm_api", "learner.learner", *CODE)
"""What a worker must be able to import: torch, vLLM, and our own code, which alone is quick."""
LIMIT_S = 120.0
MAX_SKEW_S = 1.0
"""Logs and journals of nodes are compared by their clocks, and TLS refuses much larger differences."""
STORE = "object_store_memory"


@dataclass(frozen=True, slots=True)
class ClockReading:
    """A node's clock minus ours, in seconds, and by how much that may be wrong: half of the call's time."""

    skew: float
    error: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is known of a cluster.

    Attributes:
        facts: of the nodes that answered, by name.
        silent: node -> why it did not.
        resources: node -> what Ray has there.
        clocks: node -> its clock.
        run_dir: the folder that must be shared.
        probe: a file in it, written by this command; among the `present` of every node that shares it.
    """

    facts: dict[str, Facts]
    silent: dict[str, str]
    resources: dict[str, dict[str, float]]
    clocks: dict[str, ClockReading]
    run_dir: Path
    probe: Path


def look_at(
    runtime: RayRuntime,
    config: RunConfig,
    modules: Sequence[str] = MODULES,
) -> Cluster:
    """Ask every node."""
    run_dir = config.run.dir.resolve()
    with _probe_file(run_dir) as probe:
        paths = [str(probe), *model_paths(config)]
        answers = runtime.on_every_node(
            facts_module, "facts_as_dict", tuple(modules), paths, limit_s=LIMIT_S
        )
    facts: dict[str, Facts] = {}
    silent: dict[str, str] = {}
    for node, answer in answers.items():
        if isinstance(answer, Exception):
            lines = str(answer).strip().splitlines() or [type(answer).__name__]
            silent[node] = lines[-1]
        else:
            facts[node] = Facts(**answer)
    clocks = _clocks(runtime)
    return Cluster(facts, silent, runtime.node_resources(), clocks, run_dir, probe)


def model_paths(config: RunConfig) -> list[str]:
    """The policy's folder, and those of the models that judge."""
    paths = [config.model.path]
    for seat in judge_seats(config):
        if seat.eye.path not in paths:
            paths.append(seat.eye.path)
    return paths


@contextmanager
def _probe_file(folder: Path) -> Iterator[Path]:
    """A file with a new name in a folder; both are gone afterwards if they were not there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".doctor-{uuid4().hex}"
    probe.touch()
    try:
        yield probe
    finally:
        probe.unlink(missing_ok=True)
        for path in missing:
            path.rmdir()


def _clocks(runtime: RayRuntime) -> dict[str, ClockReading]:
    """Every node's clock. Its workers run by now, so that the call is short."""
    start = time.time()
    answers = runtime.on_every_node(facts_module, "clock", limit_s=LIMIT_S)
    end = time.time()
    middle = (start + end) / 2
    clocks = {}
    for node, clock in answers.items():
        if isinstance(clock, float):
            clocks[node] = ClockReading(clock - middle, (end - start) / 2)
    return clocks


def check_cluster(
    cluster: Cluster,
    models: Sequence[str],
    needs: Needs | None,
) -> Iterator[Finding]:
    """All checks of a cluster, the general ones first; `models` are the folders that every node must see."""
    for node, reason in cluster.silent.items():
        remedy = (
            "look at `ray status` and at its logs below /tmp/ray/session_latest/logs"
        )
        yield Finding(f"node {node}", f"no answer: {reason}", remedy, is_fatal=True)
    yield from _check_resources(cluster, needs)
    yield from check_same(cluster.facts)
    yield _check_shared(cluster)
    for path in models:
        yield _check_model(cluster.facts, path)
    yield check_clocks(cluster.clocks)
    for node, facts in cluster.facts.items():
        yield from check_node(node, facts, cluster.resources.get(node, {}), needs)


def _check_resources(cluster: Cluster, needs: Needs | None) -> Iterator[Finding]:
    """Whether the cluster has the CPUs and GPUs that the run reserves."""
    cpus = sum(resources.get("CPU", 0) for resources in cluster.resources.values())
    gpus = sum(resources.get("GPU", 0) for resources in cluster.resources.values())
    state = f"{len(cluster.resources)} nodes, {cpus:g} CPUs, {gpus:g} GPUs"
    if needs is None:
        yield Finding("cluster", state)
        return
    state += f"; the run reserves {needs.cpus:g} CPUs, {needs.gpus:g} GPUs"
    if needs.cpus > cpus or needs.gpus > gpus:
        remedy = "add nodes, or lower num_cpus, num_gpus and num_workers"
        yield Finding("cluster", state, remedy, is_fatal=True)
    else:
        yield Finding("cluster", state)


def check_same(facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """One line for everything that must be the same on all nodes and is not; one if all is."""
    names: list[str] = []
    for node in facts.values():
        names += [name for name in node.versions if name not in names]
    # What it is -> its value -> the nodes that have it.
    aspects: dict[str, dict[str, list[str]]] = {}
    for label, node in facts.items():
        values = {"sightline's code": node.code or "none", "Python": node.python}
        for name in names:
            values[name] = node.versions.get(name, "none")
        for name, value in values.items():
            nodes_of_value = aspects.setdefault(name, {})
            nodes_of_value.setdefault(value, []).append(label)
    is_same = True
    for name, nodes_of_value in aspects.items():
        if len(nodes_of_value) > 1:
            is_same = False
            yield _difference(name, nodes_of_value)
    if facts and is_same:
        node = next(iter(facts.values()))
        code = node.code or "none"
        state = f"the same on all nodes: Python {node.python}, code {code}"
        yield Finding("environment", state)


def _difference(aspect: str, groups: Mapping[str, list[str]]) -> Finding:
    parts = [f"{value} on {', '.join(nodes)}" for value, nodes in groups.items()]
    remedy = (
        "install the same .venv and code on every node: one shared folder, or one image"
    )
    return Finding(aspect, "; ".join(parts), remedy, is_fatal=True)


def _check_shared(cluster: Cluster) -> Finding:
    """Whether every node sees the file that this command wrote into run.dir."""
    name = "run.dir"
    probe = str(cluster.probe)
    blind = [
        node for node, facts in cluster.facts.items() if not facts.present.get(probe)
    ]
    if blind:
        remedy = (
            "put run.dir on a file system that all nodes share, as an absolute path"
        )
        state = f"{cluster.run_dir} of this machine is not seen on {', '.join(blind)}"
        return Finding(name, state, remedy, is_fatal=True)
    return Finding(name, f"{cluster.run_dir} is shared by all nodes")


def _check_model(facts: Mapping[str, Facts], path: str) -> Finding:
    blind = [node for node, known in facts.items() if not known.present.get(path)]
    if blind:
        state = f"{path} is missing on {', '.join(blind)}"
        remedy = "copy it there, or give an absolute path that all nodes share"
        return Finding("model folder", state, remedy, is_fatal=True)
    return Finding("model folder", f"{path} is there on all nodes")


def check_clocks(clocks: Mapping[str, ClockReading]) -> Finding:
    """Whether clocks agree, as far as calls can tell."""
    largest = 0.0
    skewed = []
    for node, reading in clocks.items():
        largest = max(largest, abs(reading.skew))
        if abs(reading.skew) > MAX_SKEW_S + reading.error:
            skewed.append(f"{node} {reading.skew:+.1f} s")
    if skewed:
        remedy = "let a time service run on every node (chrony, systemd-timesyncd)"
        return Finding("clocks", ", ".join(skewed), remedy)
    return Finding("clocks", f"within {largest:.1f} s of this machine's")


def check_node(
    node: str,
    facts: Facts,
    resources: Mapping[str, float],
    needs: Needs | None,
) -> Iterator[Finding]:
    """What is wrong with one node; one line where all is well."""
    findings = [*check_gpus(facts.nvidia_smi, wheels_cuda())]
    findings.append(check_open_files(facts.open_files))
    if needs is not None:
        free = facts.shared_memory
        findings.append(check_shared_memory(free, needs.shared_memory, "a push", True))
        findings.append(_check_store(resources.get(STORE, 0), needs))
        if needs.gpus and needs.nodes > 1:
            findings += check_network(facts, nccl_version(), True, needs.environment)
    for module, reason in facts.failed_imports.items():
        remedy = f"mend the environment of {facts.executable}"
        findings.append(Finding(f"import {module}", reason, remedy, is_fatal=True))
    problems = [finding for finding in findings if finding.remedy]
    if not problems:
        yield Finding(f"node {node}", f"{facts.executable}, GPU {findings[0].state}")
    for problem in problems:
        yield replace(problem, name=f"node {node}: {problem.name}")


def _check_store(size: float, needs: Needs) -> Finding:
    """Whether a push fits in Ray's object store; what does not goes through the disk, ten times slower."""
    name = "object store"
    if size >= needs.object_store:
        return Finding(name, f"{gib(size)}, a push needs {gib(needs.object_store)}")
    remedy = (
        f"a push needs {gib(needs.object_store)}, or goes over the disk: "
        f"`ray start --object-store-memory {int(1.2 * needs.object_store)}`"
    )
    return Finding(name, gib(size), remedy)
