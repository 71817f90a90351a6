"""All resources of a run at once, each on the node that `topology` chose: either every actor has its place, or none.

Ray commits a placement group on all of its nodes or on none, and a group that waits holds nothing. So two runs that
start together cannot wait for each other: the one that comes second is told what is short and who holds it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from cluster.placement.bundles import Bundle
from cluster.placement.topology import Node, NoRoom, Slot, assign, slots_of
from common.errors import UserError

log = logging.getLogger("sightline")

COMMIT_LIMIT_S = 10.0
"""Ray commits within milliseconds what is free; after this somebody else was faster."""
RETRY_S = 1.0
NODE_LABEL = "ray.io/node-id"
MAX_NAMED = 3
RESOURCES = (("CPU", "num_cpus"), ("GPU", "num_gpus"))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a slot is: a bundle of a placement group, on a node."""

    group: Any
    index: int
    node_id: str


class Reservation:
    """The places of a run's actors. `ray` is connected to the cluster."""

    def __init__(self, ray: ModuleType, owner: str, limit_s: float) -> None:
        """`owner` is what others are told who want the same resources."""
        self._ray = ray
        self._owner = owner
        self._limit_s = limit_s
        self._groups: list[Any] = []
        self._numbers = itertools.count(1)
        # By the names of actors; several may share a slot.
        self._slot_of_actor: dict[str, Slot] = {}
        self._place_of_actor: dict[str, Place] = {}
        self._actor_of_node: dict[str, str] = {}
        # One at a time: what is free is looked up before it is taken.
        self._renewing = asyncio.Lock()

    @property
    def actor_of_node(self) -> Mapping[str, str]:
        """The ids of the nodes that are used, each with the name of one of its actors."""
        return self._actor_of_node

    def take(self, bundles: Sequence[Bundle]) -> None:
        """Reserve, or raise.

        Raises:
            UserError: the cluster is too small, or others hold it for longer than the limit.
        """
        slots = slots_of(bundles)
        if not slots:
            return
        _check_size(slots, self._nodes(only_free=False))
        deadline = time.monotonic() + self._limit_s
        warned = False
        while not self._try(slots):
            shortage = self._shortage(slots)
            if time.monotonic() > deadline:
                raise UserError(
                    f"placement: expected a reservation within {self._limit_s:g} s (cluster.start_timeout_s), got "
                    f"{shortage}; stop what holds it, wait for it, or ask for less"
                )
            if not warned:
                log.warning("placement: waiting, %s", shortage)
                warned = True
            time.sleep(RETRY_S)

    def strategy_of(self, name: str) -> Any:
        """Where Ray starts the actor of this name; None without a place."""
        place = self._place_of_actor.get(name)
        if place is None:
            return None
        strategies = self._ray.util.scheduling_strategies
        return strategies.PlacementGroupSchedulingStrategy(
            place.group, placement_group_bundle_index=place.index
        )

    async def renew(self, name: str) -> None:
        """Reserve another place for an actor whose node has left; at once where it is still there.

        Raises:
            UserError: no node had room within the limit.
        """
        slot = self._slot_of_actor.get(name)
        if slot is None:
            return
        deadline = time.monotonic() + self._limit_s
        warned = False
        while not self._is_there(name):
            async with self._renewing:
                # An actor that shares the slot may have got another place for both meanwhile.
                if self._is_there(name) or await asyncio.to_thread(self._try, [slot]):
                    break
            if time.monotonic() > deadline:
                raise UserError(
                    f"placement: expected room for {slot.name} within {self._limit_s:g} s "
                    f"(cluster.start_timeout_s) after its node has left, got {self._shortage([slot])}"
                )
            if not warned:
                log.warning(
                    "placement: the node of %s has left; waiting for one with %g GPUs and %g CPUs",
                    slot.name,
                    slot.num_gpus,
                    slot.num_cpus,
                )
                warned = True
            await asyncio.sleep(RETRY_S)

    def release(self) -> None:
        """Give everything back."""
        for group in self._groups:
            self._ray.util.remove_placement_group(group)
        self._groups.clear()
        self._slot_of_actor.clear()
        self._place_of_actor.clear()
        self._actor_of_node.clear()

    def _is_there(self, name: str) -> bool:
        """Whether the node of an actor is alive."""
        node_id = self._place_of_actor[name].node_id
        return any(node.id == node_id for node in self._nodes(only_free=False))

    def _try(self, slots: Sequence[Slot]) -> bool:
        """Reserve what is free now."""
        try:
            node_of_slot = assign(slots, self._nodes(only_free=True))
        except NoRoom:
            return False
        resources: list[dict[str, float]] = []
        selectors: list[dict[str, str]] = []
        for slot in slots:
            resources.append({"CPU": slot.num_cpus, "GPU": slot.num_gpus})
            selectors.append({NODE_LABEL: node_of_slot[slot.name].id})
        group = self._ray.util.placement_group(
            resources,
            strategy="PACK",
            name=self._next_name(),
            bundle_label_selector=selectors,
        )
        if not group.wait(min(COMMIT_LIMIT_S, self._limit_s)):
            # What waits must not get resources later, when others have been promised them.
            self._ray.util.remove_placement_group(group)
            return False
        self._groups.append(group)
        for index, slot in enumerate(slots):
            node_id = node_of_slot[slot.name].id
            self._actor_of_node.setdefault(node_id, slot.name)
            for bundle in slot.bundles:
                self._slot_of_actor[bundle.name] = slot
                self._place_of_actor[bundle.name] = Place(group, index, node_id)
        return True

    def _next_name(self) -> str:
        """Ray refuses a second group of the same name, and those of nodes that have left keep theirs."""
        number = next(self._numbers)
        return self._owner if number == 1 else f"{self._owner}, {number}"

    def _nodes(self, only_free: bool) -> list[Node]:
        """The cluster's living nodes, with what they have or what is free of it."""
        ray = self._ray
        free: dict[str, dict[str, float]] | None = None
        # Ray's client does not tell what is free; the reservation then finds out.
        if only_free and not ray.util.client.ray.is_connected():
            free = ray._private.state.available_resources_per_node()
        nodes: list[Node] = []
        for entry in ray.nodes():
            if not entry["Alive"]:
                continue
            resources = entry["Resources"]
            if free is not None:
                resources = free.get(entry["NodeID"], {})
            node = Node(
                entry["NodeID"],
                entry["NodeManagerAddress"],
                resources.get("CPU", 0.0),
                resources.get("GPU", 0.0),
            )
            nodes.append(node)
        return nodes

    def _shortage(self, slots: Sequence[Slot]) -> str:
        """What is not free, and who holds it."""
        every = self._nodes(only_free=False)
        free = self._nodes(only_free=True)
        short = f"no node with room for {_largest(slots, 'num_gpus').name}"
        for resource, field in RESOURCES:
            wanted, left = _sum(slots, field), _sum(free, field)
            if wanted > left:
                short = f"{left:g} of {_sum(every, field):g} {resource}s free for {wanted:g}"
        return f"{short}, held by {self._holders()}"

    def _holders(self) -> str:
        groups: list[str] = []
        for group in self._ray.util.placement_group_table().values():
            if group["state"] != "CREATED":
                continue
            bundles = group["bundles"].values()
            num_gpus = sum(bundle.get("GPU", 0.0) for bundle in bundles)
            num_cpus = sum(bundle.get("CPU", 0.0) for bundle in bundles)
            name = group["name"] or "a placement group without a name"
            groups.append(f"{name} ({num_gpus:g} GPUs, {num_cpus:g} CPUs)")
        if not groups:
            return "actors or tasks of other jobs (`ray status`)"
        shown = "; ".join(groups[:MAX_NAMED])
        more = len(groups) - MAX_NAMED
        return f"{shown} and {more} more" if more > 0 else shown


def _check_size(slots: Sequence[Slot], nodes: Sequence[Node]) -> None:
    """Refuse (UserError) what the cluster could not hold if nobody else used it."""
    num_actors = sum(len(slot.bundles) for slot in slots)
    for resource, field in RESOURCES:
        wanted, there = _sum(slots, field), _sum(nodes, field)
        if wanted > there:
            raise UserError(
                f"placement: expected {wanted:g} {resource}s for {num_actors} actors, got {there:g} in the cluster; "
                f"lower rollout.{field}, learner.{field} or num_workers"
            )
    for slot in slots:
        if not any(_holds(node, slot) for node in nodes):
            largest = max(nodes, key=lambda node: (node.num_gpus, node.num_cpus))
            raise UserError(
                f"placement: expected a node with {slot.num_gpus:g} GPUs and {slot.num_cpus:g} CPUs for {slot.name}, "
                f"got at most {largest.num_gpus:g} GPUs and {largest.num_cpus:g} CPUs on one; "
                f"{_remedy(slot)}"
            )
    try:
        assign(slots, nodes)
    except NoRoom as error:
        slot = error.slot
        sizes = ", ".join(f"{node.num_gpus:g}" for node in nodes)
        raise UserError(
            f"placement: expected room for {slot.name} ({slot.num_gpus:g} GPUs, {slot.num_cpus:g} CPUs) on one node "
            f"beside the other {num_actors - 1} actors, got nodes of {sizes} GPUs; {_remedy(slot)}"
        ) from error


def _remedy(slot: Slot) -> str:
    key = slot.name.partition("/")[0]
    section = {"judge": "reward.judge"}.get(key, key)
    return f"lower {section}.num_gpus or num_cpus, or add a larger node"


def _holds(node: Node, slot: Slot) -> bool:
    return node.num_cpus >= slot.num_cpus and node.num_gpus >= slot.num_gpus


def _largest(slots: Sequence[Slot], field: str) -> Slot:
    return max(slots, key=lambda slot: float(getattr(slot, field)))


def _sum(items: Sequence[Slot] | Sequence[Node], field: str) -> float:
    return float(sum(getattr(item, field) for item in items))
