"""Calls of one function on every node of a Ray cluster. Ray itself is given: one file alone imports it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive; `label` is its host with the beginning of Ray's id, since several may be on one host."""

    id: str
    label: str
    resources: dict[str, float]


def living_nodes(ray: Any) -> Iterator[Node]:
    """The nodes of the cluster that this process has joined."""
    for node in ray.nodes():
        if node["Alive"]:
            label = f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}"
            yield Node(node["NodeID"], label, node["Resources"])


def call_on_node(ray: Any, node_id: str, function: Any, *args: Any) -> Any:
    """A reference to what a function returns on a node."""
    strategies = ray.util.scheduling_strategies
    there = strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(function)
    return task.remote(*args)


def call_on_nodes(
    ray: Any,
    module: ModuleType,
    function: str,
    args: Sequence[Any],
    limit_s: float,
) -> dict[str, Any]:
    """What a function of a module returns on every node, by label; the error where it raised or gave no answer."""
    ray.cloudpickle.register_pickle_by_value(module)
    calls = {}
    for node in living_nodes(ray):
        call = call_on_node(ray, node.id, getattr(module, function), *args)
        calls[node.label] = call
    ray.wait(list(calls.values()), num_returns=len(calls), timeout=limit_s)
    answers: dict[str, Any] = {}
    for label, call in calls.items():
        try:
            answers[label] = ray.get(call, timeout=0.1)
        # Whatever it is, it is that node's answer.
        except Exception as error:
            answers[label] = error
    ray.cloudpickle.unregister_pickle_by_value(module)
    return answers
