"""Which node every actor of a run sits on. Arithmetic only: Ray is told the outcome, it decides nothing.

The learner's ranks are one block: on as few nodes as they fit on, nodes in the order of their addresses, so that rank
i + 1 sits beside rank i, or is the first of the next node. Every engine is whole on one node. Of the nodes that could
take something the fullest one does, which leaves whole nodes to what needs them. Actors without GPUs go where most
CPUs are free.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.placement.bundles import Bundle


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster, with all of its resources or those that are free.

    Attributes:
        id: Ray's.
    """

    id: str
    address: str
    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, slots=True)
class Slot:
    """What one node must give at once: to one actor, or to an engine and the ranks that share its GPUs."""

    bundles: tuple[Bundle, ...]

    @property
    def name(self) -> str:
        """Of the actor whose GPUs they are."""
        return self.bundles[0].name

    @property
    def num_cpus(self) -> float:
        """Of all its actors."""
        return sum(bundle.num_cpus for bundle in self.bundles)

    @property
    def num_gpus(self) -> float:
        """Shared by all its actors."""
        return self.bundles[0].num_gpus

    @property
    def is_learner(self) -> bool:
        """Whether a rank is in it."""
        return any(bundle.name.startswith("learner/") for bundle in self.bundles)


class NoRoom(Exception):
    """No node can take this slot beside the others."""

    def __init__(self, slot: Slot) -> None:
        super().__init__(slot.name)
        self.slot = slot


def slots_of(bundles: Iterable[Bundle]) -> list[Slot]:
    """The slots of bundles; one that shares GPUs joins the slot of their owner. Empty ones need no place."""
    members: dict[str, list[Bundle]] = {}
    for bundle in sorted(bundles, key=lambda bundle: bool(bundle.beside)):
        members.setdefault(bundle.beside or bundle.name, []).append(bundle)
    slots = [Slot(tuple(group)) for group in members.values()]
    return [slot for slot in slots if slot.num_cpus or slot.num_gpus]


def assign(slots: Sequence[Slot], nodes: Sequence[Node]) -> dict[str, Node]:
    """The node of every slot, by the slot's name.

    Raises:
        NoRoom: they do not fit on these nodes.
    """
    failure: NoRoom | None = None
    # Engines of several GPUs cannot be split up: where ranks leave them no whole node, they go first.
    for order in (_ranks_first, _engines_first):
        seating = _Seating(nodes)
        try:
            for block in order(slots):
                seating.place(block)
        except NoRoom as error:
            failure = failure or error
        else:
            return seating.node_of_slot
    assert failure is not None
    raise failure


Blocks = list[list[Slot]]
"""Slots in the order in which they are placed; those of one block lie together."""


def _ranks_first(slots: Sequence[Slot]) -> Blocks:
    learner, others = _parted(slots)
    return [learner, *others]


def _engines_first(slots: Sequence[Slot]) -> Blocks:
    learner, others = _parted(slots)
    whole = [block for block in others if block[0].num_gpus > 1]
    small = [block for block in others if block[0].num_gpus <= 1]
    return [*whole, learner, *small]


def _parted(slots: Sequence[Slot]) -> tuple[list[Slot], Blocks]:
    """The learner's block, and a block for every other slot, those with most GPUs first."""
    learner = [slot for slot in slots if slot.is_learner]
    others = [slot for slot in slots if not slot.is_learner]
    # Sorting is stable: engines stay in the order of their numbers.
    others.sort(key=lambda slot: -slot.num_gpus)
    return learner, [[slot] for slot in others]


class _Seating:
    """Nodes that fill up."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = sorted(nodes, key=_place_in_order)
        self._cpus = {node.id: node.num_cpus for node in nodes}
        self._gpus = {node.id: node.num_gpus for node in nodes}
        self.node_of_slot: dict[str, Node] = {}

    def place(self, block: Sequence[Slot]) -> None:
        """Place equal slots on as few nodes as possible, in the order of the nodes."""
        counts: dict[str, int] = {}
        left = len(block)
        while left:
            node = self._best_node(block[0], left)
            count = min(left, self._room(node, block[0]))
            if count == 0:
                raise NoRoom(block[0])
            self._take(node, block[0], count)
            counts[node.id] = counts.get(node.id, 0) + count
            left -= count
        waiting = iter(block)
        for node in self._nodes:
            for _ in range(counts.get(node.id, 0)):
                self.node_of_slot[next(waiting).name] = node

    def _best_node(self, slot: Slot, count: int) -> Node:
        """The fullest of the nodes that take so many of this slot, else the one that takes most."""
        if not self._nodes:
            raise NoRoom(slot)
        rooms = {node.id: self._room(node, slot) for node in self._nodes}
        if not slot.num_gpus and count == 1:
            return max(self._nodes, key=lambda node: self._cpus[node.id])
        fitting = [node for node in self._nodes if rooms[node.id] >= count]
        if fitting:
            return min(fitting, key=lambda node: rooms[node.id])
        return max(self._nodes, key=lambda node: rooms[node.id])

    def _room(self, node: Node, slot: Slot) -> int:
        """How many of this slot the node can take."""
        by_cpus = _times(self._cpus[node.id], slot.num_cpus)
        by_gpus = _times(self._gpus[node.id], slot.num_gpus)
        return int(min(by_cpus, by_gpus))

    def _take(self, node: Node, slot: Slot, count: int) -> None:
        self._cpus[node.id] -= count * slot.num_cpus
        self._gpus[node.id] -= count * slot.num_gpus


def _times(free: float, wanted: float) -> float:
    """How often a resource is there."""
    if not wanted:
        return math.inf
    # Shares such as 0.1 do not add up exactly.
    return math.floor(free / wanted + 1e-6)


def _place_in_order(node: Node) -> tuple[int, int, str, str]:
    """By the number of the address where it has one: 10.0.0.9 comes before 10.0.0.10."""
    try:
        address = ipaddress.ip_address(node.address)
    except ValueError:
        return (0, 0, node.address, node.id)
    return (address.version, int(address), "", node.id)
