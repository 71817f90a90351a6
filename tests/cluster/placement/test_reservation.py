"""Places of actors whose nodes leave and join, on a Ray of a few lines."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.placement import reservation
from cluster.placement.bundles import Bundle
from cluster.placement.reservation import Reservation
from common.errors import UserError


class FakeRay:
    """Nodes with CPUs, and placement groups that are committed where their selectors say."""

    def __init__(self, **cpus: float) -> None:
        self.cpus = dict(cpus)
        self.groups: list[dict[str, float]] = []
        self._names: set[str] = set()
        strategies = SimpleNamespace(
            PlacementGroupSchedulingStrategy=lambda group, placement_group_bundle_index: (
                group.nodes[placement_group_bundle_index]
            )
        )
        client = SimpleNamespace(ray=SimpleNamespace(is_connected=lambda: False))
        self.util = SimpleNamespace(
            placement_group=self._group,
            remove_placement_group=self._remove,
            placement_group_table=dict,
            scheduling_strategies=strategies,
            client=client,
        )
        state = SimpleNamespace(available_resources_per_node=self._free)
        self._private = SimpleNamespace(state=state)

    def nodes(self) -> list[dict[str, Any]]:
        entries = []
        for number, (node_id, cpus) in enumerate(self.cpus.items()):
            entry = {
                "NodeID": node_id,
                "NodeManagerAddress": f"10.0.0.{number}",
                "Resources": {"CPU": cpus},
                "Alive": True,
            }
            entries.append(entry)
        return entries

    def _free(self) -> dict[str, dict[str, float]]:
        free = dict(self.cpus)
        for group in self.groups:
            for node_id, cpus in group.items():
                if node_id in free:
                    free[node_id] -= cpus
        return {node_id: {"CPU": cpus} for node_id, cpus in free.items()}

    def _group(
        self, resources: Any, strategy: str, name: str, bundle_label_selector: Any
    ) -> Any:
        # Ray does not take a name twice, also when the node of the first has left.
        assert name not in self._names
        self._names.add(name)
        nodes = [selector["ray.io/node-id"] for selector in bundle_label_selector]
        taken: dict[str, float] = {}
        for node_id, wanted in zip(nodes, resources, strict=True):
            taken[node_id] = taken.get(node_id, 0.0) + wanted["CPU"]
        self.groups.append(taken)
        return SimpleNamespace(nodes=nodes, taken=taken, wait=lambda limit_s: True)

    def _remove(self, group: Any) -> None:
        self.groups.remove(group.taken)


BUNDLES = [Bundle("rollout/0", 2, 0, ""), Bundle("rollout/1", 2, 0, "")]


def taken(ray: Any, limit_s: float = 5.0) -> Reservation:
    places = Reservation(ray, "a run", limit_s)
    places.take(BUNDLES)
    return places


def test_an_actor_whose_node_is_there_keeps_its_place() -> None:
    ray = FakeRay(a=2, b=2)
    places = taken(ray)
    before = places.strategy_of("rollout/1")
    asyncio.run(places.renew("rollout/1"))
    assert places.strategy_of("rollout/1") == before
    assert len(ray.groups) == 1


def test_an_actor_whose_node_has_left_moves_and_the_others_stay() -> None:
    ray = FakeRay(a=2, b=2)
    places = taken(ray)
    node_of = {name: places.strategy_of(name) for name in ("rollout/0", "rollout/1")}
    del ray.cpus[node_of["rollout/1"]]
    ray.cpus["c"] = 2
    asyncio.run(places.renew("rollout/0"))
    asyncio.run(places.renew("rollout/1"))
    assert places.strategy_of("rollout/0") == node_of["rollout/0"]
    assert places.strategy_of("rollout/1") == "c"
    places.release()
    assert ray.groups == []


def test_it_waits_for_a_node_that_joins(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reservation, "RETRY_S", 0.01)
    ray = FakeRay(a=2, b=2)
    places = taken(ray)
    del ray.cpus[places.strategy_of("rollout/1")]

    async def scenario() -> None:
        renewing = asyncio.create_task(places.renew("rollout/1"))
        await asyncio.sleep(0.1)
        assert not renewing.done()
        ray.cpus["c"] = 4
        await renewing

    asyncio.run(scenario())
    assert places.strategy_of("rollout/1") == "c"
    assert caplog.messages == [
        "placement: the node of rollout/1 has left; waiting for one with 0 GPUs and 2 CPUs"
    ]


def test_actors_that_share_a_place_move_once() -> None:
    """An engine and the rank beside it come back at the same time, each by its own way."""
    ray = FakeRay(a=4, b=4)
    places = Reservation(ray, "a run", 5.0)
    rank = Bundle("learner/0", 1, 0, "", beside="rollout/0")
    places.take([Bundle("rollout/0", 2, 0, ""), rank])
    assert ray.groups == [{places.strategy_of("rollout/0"): 3}]
    del ray.cpus[places.strategy_of("rollout/0")]

    async def scenario() -> None:
        await asyncio.gather(places.renew("rollout/0"), places.renew("learner/0"))

    asyncio.run(scenario())
    assert places.strategy_of("rollout/0") == places.strategy_of("learner/0")
    # The one that is gone, and one more.
    assert len(ray.groups) == 2


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservation, "RETRY_S", 0.01)
    ray = FakeRay(a=2, b=2)
    places = taken(ray, limit_s=0.05)
    del ray.cpus[places.strategy_of("rollout/1")]
    with pytest.raises(UserError, match="after its node has left, got 0 of 2 CPUs"):
        asyncio.run(places.renew("rollout/1"))
