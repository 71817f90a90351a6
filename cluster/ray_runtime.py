"""Plain classes as Ray actors. The only file that imports Ray."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Sequence
from types import ModuleType
from typing import Any

from cluster.placement import Bundle
from common.config import Cluster
from common.errors import UserError
from common.protocols import Handle

KNOCK_S = 10.0


def _import_ray(local: bool) -> ModuleType:
    """Ray reads its environment at import. A local cluster binds to loopback, as Ray does on Windows and macOS."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    if local:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    import ray
    import ray.util.scheduling_strategies

    return ray


def _knock(address: str) -> None:
    """Fail at once where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


class RayHandle:
    """One actor. References are Ray object refs: awaitable, and cheap to pass on.

    `ray.kill` returns before the actor is dead, and a call sent after it may still be answered: a handle whose actor
    was stopped sends none.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._stopped = False

    @property
    def actor(self) -> Any:
        """The actor, to send it a call. Raises RuntimeError once it was stopped."""
        if self._stopped:
            raise RuntimeError(
                "expected a running worker, got a call to one that was stopped"
            )
        return self._actor

    def retire(self) -> Any:
        """The actor, to be killed; no call is sent to it any more."""
        actor, self._stopped = self.actor, True
        return actor

    def call(self, method: str, *args: Any) -> Awaitable[Any]:
        reference: Awaitable[Any] = getattr(self.actor, method).remote(*args)
        return reference

    def call_split(
        self, method: str, num_returns: int, *args: Any
    ) -> Sequence[Awaitable[Any]]:
        references: Sequence[Awaitable[Any]] = (
            getattr(self.actor, method).options(num_returns=num_returns).remote(*args)
        )
        return references


class RayRuntime:
    """Connects to a cluster, or starts a local one bound to this machine's loopback address.

    Raises:
        UserError: no cluster answers at `cluster.address`, or `reserve` asks for more than the cluster has.
    """

    def __init__(self, config: Cluster, bundles: Sequence[Bundle] = ()) -> None:
        self._config = config
        self._actors: list[Any] = []
        self._group: Any = None
        self._index: dict[str, int] = {}
        address = config.address or os.environ.get("RAY_ADDRESS")
        self._ray = _import_ray(local=not address)
        quiet: dict[str, Any] = {
            "logging_level": logging.WARNING,
            "log_to_driver": bool(os.environ.get("SIGHTLINE_DEBUG")),
        }
        try:
            if address:
                _knock(address)
                self._ray.init(address=address, **quiet)
            else:
                self._ray.init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=1 << 29,
                    **quiet,
                )
        except (
            Exception
        ) as error:  # Ray raises it bare where its node does not come up in time
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"cluster.address: expected a running Ray cluster at {address}, got: {first}; start one with "
                "`ray start --head` or leave the address out"
                if address
                else f"cluster: expected Ray to start on this machine, got: {first}; free processors or memory and try "
                "again, or give cluster.address"
            ) from error
        try:
            self._reserve(bundles)
        except BaseException:
            self.shutdown()
            raise

    def _reserve(self, bundles: Sequence[Bundle]) -> None:
        """Take all resources at once, so that two half-started runs cannot wait for each other."""
        if not bundles:
            return
        have = self._ray.cluster_resources()
        for resource, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
            need = sum(getattr(bundle, field) for bundle in bundles)
            if need > have.get(resource, 0):
                raise UserError(
                    f"placement: expected {need:g} {resource}s for {len(bundles)} actors, got "
                    f"{have.get(resource, 0):g} in the cluster; lower rollout.{field}, learner.{field} or num_workers"
                )
        placed = [bundle for bundle in bundles if bundle.num_cpus or bundle.num_gpus]
        self._index = {bundle.name: index for index, bundle in enumerate(placed)}
        self._group = self._ray.util.placement_group(
            [{"CPU": b.num_cpus, "GPU": b.num_gpus} for b in placed], strategy="PACK"
        )
        if not self._group.wait(self._config.start_timeout_s):
            raise UserError(
                f"placement: expected the reservation within {self._config.start_timeout_s:g} s, got none; other jobs "
                "hold the resources: `ray status` lists them"
            )

    def spawn(
        self, worker: type, *args: Any, name: str, num_cpus: float, num_gpus: float
    ) -> Handle:
        """Start `worker(*args)` as an actor, inside the reservation when it has a place of that name."""
        options: dict[str, Any] = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "max_restarts": 0,
        }
        if self._group is not None and name in self._index:
            options["scheduling_strategy"] = (
                self._ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=self._index[name]
                )
            )
        actor: Any = self._ray.remote(**options)(worker).remote(*args)
        self._actors.append(actor)
        return RayHandle(actor)

    def stop(self, handle: Handle) -> None:
        """Kill one actor; its place in the reservation is free for another of the same name."""
        assert isinstance(handle, RayHandle)
        actor = handle.retire()
        self._actors.remove(actor)
        self._ray.kill(actor)

    def shutdown(self) -> None:
        """Kill our actors and give the reservation back; stop the cluster if it was ours."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors.clear()
        if self._group is not None:
            self._ray.util.remove_placement_group(self._group)
            self._group = None
        self._ray.shutdown()
