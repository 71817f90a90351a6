"""Plain classes as Ray actors. The only file that imports Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from cluster.placement.bundles import Bundle
from cluster.placement.reservation import Reservation
from cluster.placement.shared_gpus import SharedGpus
from cluster.runtime.environment import passed_variables, with_variables
from cluster.runtime.gauges import Gauges
from cluster.runtime.node_calls import (
    call_on_node,
    call_on_nodes,
    living_nodes,
)
from cluster.runtime.object_store import free_shared_memory, store_bytes
from cluster.runtime.processes import kill_all
from cluster.runtime.proxies import check_loopback
from cluster.runtime.ray_handle import PULSE, RayHandle
from cluster.runtime.seated import GPUS, look, seated
from common.config import Cluster
from common.errors import UserError
from common.machine.address import NODE_ADDRESS
from common.machine.held_files import sweep_held
from common.protocols import Handle, Pulse, Sight

CONNECT_LIMIT_S = 10.0
BURY_LIMIT_S = 10.0
HIDE_GPUS = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
"""Ray's switch: "1" hides the GPUs of a node from an actor that has none of them."""
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""What a gRPC client says first, with empty settings (RFC 9113, section 3.4): a server that lives answers at once."""


def _import_ray(is_local: bool) -> ModuleType:
    """Import Ray with the environment that it reads at import."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Read by the actors of a local cluster; those of other nodes get it from `_actor_environment`.
    os.environ.setdefault(HIDE_GPUS, "1")
    if is_local:
        # Bind to loopback, as Ray does on Windows and macOS.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    import ray
    import ray.util.metrics
    import ray.util.scheduling_strategies

    return ray


def _address_of_auto() -> str:
    """The cluster that `auto` means to Ray: the last `ray start` of this machine, else one that runs here.

    Raises:
        ConnectionError: there is none.
    """
    from ray._private import services

    return str(services.get_ray_address_from_environment("auto", None))


def _check_answers(address: str) -> None:
    """Raise OSError within seconds where no cluster answers; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    peer = (host.strip("[]"), int(port))
    with socket.create_connection(peer, timeout=CONNECT_LIMIT_S) as connection:
        # A process that is stopped accepts connections too, but says nothing.
        connection.sendall(HTTP2_GREETING)
        answer = connection.recv(16)
    if answer.startswith(b"HTTP/"):
        raise ConnectionError(
            "a web server there, such as Ray's dashboard; the head's port is 6379"
        )


def _check_client_proxy(address: str) -> None:
    """Refuse (UserError) a proxy that would catch what Ray's client sends to this machine."""
    if address.startswith("ray://"):
        host = address.removeprefix("ray://").rpartition(":")[0]
        check_loopback(f"http://{host}", "cluster.address")


def _explained(error: Exception) -> str | None:
    """The line for a failed start of a local cluster whose cause the environment is; None for any other cause."""
    text = str(error)
    if "AF_UNIX path length" in text:
        return (
            "TMPDIR: expected a folder short enough for Ray's sockets, whose paths have at most 107 bytes, got "
            f"{_ray_folder()}; set TMPDIR to a shorter one, such as /tmp"
        )
    if not isinstance(error, OSError) or error.filename is None:
        return None
    path, reason = Path(str(error.filename)), os.strerror(error.errno or 0)
    if path.is_relative_to(Path.home() / ".ray"):
        return (
            f"HOME: expected a home folder that can be written, where Ray keeps the key of its cluster ({path}), got "
            f"{reason!r}; set HOME to a folder of yours"
        )
    if path.is_relative_to(_ray_folder()):
        return (
            f"TMPDIR: expected a folder that can be written, where Ray keeps its logs and sockets ({path}), got "
            f"{reason!r}; set TMPDIR to another one"
        )
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _ray_folder() -> str:
    """Where Ray makes its own folder, as Ray decides it."""
    environment = os.environ
    return environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp"


class RayRuntime:
    """Connects to a cluster, or starts a local one bound to this machine's loopback address.

    Raises:
        UserError: no cluster answers at `cluster.address`, it has less than `bundles` ask for, or a variable of
            `cluster.pass_env` is not set.
    """

    def __init__(
        self,
        config: Cluster,
        bundles: Sequence[Bundle] = (),
        owner: str = "sightline",
        push_bytes: float = 0.0,
    ) -> None:
        """Connect and reserve.

        Args:
            bundles: of all actors that will be started by these names.
            owner: what others are told who want the same resources.
            push_bytes: of one weight push, which a local object store must hold.
        """
        self._config = config
        self._push_bytes = push_bytes
        self._actors: list[Any] = []
        # The last actor of a name: several may follow each other.
        self._actor_of_name: dict[str, Any] = {}
        self._bundles = bundles
        self._passed = passed_variables(config)
        address = config.address or os.environ.get("RAY_ADDRESS")
        if address == "local":
            address = None
        self._is_local = not address
        self._ray = _import_ray(self._is_local)
        limit_s = config.start_timeout_s
        self._shared_gpus = SharedGpus(bundles, self._gpus_of, limit_s)
        self._gauges = Gauges(self._ray, owner)
        self._reservation = Reservation(self._ray, _signed(owner), limit_s)
        self._connect(address)
        try:
            self._reservation.take(bundles)
        except BaseException:
            self.shutdown()
            raise

    def _connect(self, address: str | None) -> None:
        if address:
            self._join(address)
        else:
            self._start_local()

    def _join(self, address: str) -> None:
        _check_client_proxy(address)
        named = address
        remedy = "start one with `ray start --head`"
        try:
            if address == "auto":
                named = _address_of_auto()
            _check_answers(named)
            remedy = "set RAY_AUTH_MODE=token if it wants its token, look at its logs"
            # Not by its resolved address: Ray shows this machine's token to `auto` alone.
            self._init(address=address)
        # Ray raises a bare Exception where its node does not come up in time.
        except Exception as error:
            meaning = ""
            if address == "auto":
                meaning = " (which RAY_ADDRESS or cluster.address = auto means)"
            raise UserError(
                f"cluster.address: expected a running Ray cluster at {named}{meaning}, got: {_first_line(error)}; "
                f"{remedy}, or leave the address out and unset RAY_ADDRESS"
            ) from error

    def _start_local(self) -> None:
        try:
            self._init(
                address="local",
                include_dashboard=False,
                object_store_memory=self._store_bytes(),
            )
        except Exception as error:
            explained = _explained(error)
            if explained is not None:
                raise UserError(explained) from error
            raise UserError(
                f"cluster: expected Ray to start on this machine, got: {_first_line(error)}; "
                "free processors or memory and try again, or give cluster.address"
            ) from error

    def _store_bytes(self) -> int:
        num_engines = 0
        for bundle in self._bundles:
            num_engines += bundle.name.startswith("rollout/")
        return store_bytes(self._push_bytes, num_engines, free_shared_memory())

    def _init(self, **options: Any) -> None:
        on_sigterm = signal.getsignal(signal.SIGTERM)
        self._ray.init(
            logging_level=logging.WARNING,
            log_to_driver=bool(os.environ.get("SIGHTLINE_DEBUG")),
            **options,
        )
        if not os.environ.get("SIGHTLINE_DEBUG"):
            _hide_ray_messages()
        # Ray's own handler exits in the middle of whatever runs, and aborts with a native stack.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)

    def spawn(
        self, worker: type, *args: Any, name: str, num_cpus: float, num_gpus: float
    ) -> Handle:
        """Start `worker(*args)` as an actor, inside the reservation when it has a place of that name.

        It can be asked for `survey` as well (see `seated`). One that shares GPUs is started after their owner.
        """
        environment = self._actor_environment()
        shared = self._shared_gpus.of(name)
        if shared is not None:
            # In Ray's books they belong to the other actor alone.
            num_gpus = 0
            environment |= {HIDE_GPUS: "0", GPUS: shared}
        options: dict[str, Any] = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "max_restarts": 0,
            # Beside a method that works for minutes, and beside an event loop that is busy.
            "concurrency_groups": {PULSE: 1},
        }
        if environment:
            options["runtime_env"] = {"env_vars": environment}
        strategy = self._reservation.strategy_of(name)
        if strategy is not None:
            options["scheduling_strategy"] = strategy
        worker = seated(worker, str(Path.cwd()), name, note_node_address)
        if self._passed:
            worker = with_variables(worker)
            args = (self._passed, *args)
        actor_class = self._ray.remote(**options)(worker)
        actor: Any = actor_class.remote(*args)
        self._actors.append(actor)
        self._actor_of_name[name] = actor
        return RayHandle(actor)

    async def make_room(self, name: str) -> None:
        await self._reservation.renew(name)
        await self._shared_gpus.wait_for(name)

    def survey_nodes(self, nonce_file: str) -> dict[str, Awaitable[Sight]]:
        sights: dict[str, Awaitable[Sight]] = {}
        for node_id, name in self._reservation.actor_of_node.items():
            sights[name] = call_on_node(self._ray, node_id, look, nonce_file, ())
        return sights

    def _actor_environment(self) -> dict[str, str]:
        """Variables of every actor. This process's own reach a local cluster, but no raylet of another node."""
        if self._is_local:
            return dict(self._config.env)
        # An actor without GPUs must not see those of its node.
        return {HIDE_GPUS: "1", **self._config.env}

    def _gpus_of(self, name: str) -> str:
        """The GPUs that the actor of this name sees."""
        asked = self._actor_of_name[name].survey.remote("", ())
        sight: Sight = self._ray.get(asked, timeout=self._config.start_timeout_s)
        return sight.gpus

    def on_every_node(
        self,
        module: ModuleType,
        function: str,
        *args: Any,
        limit_s: float,
    ) -> dict[str, Any]:
        """Call a function of a module once on every node; what it returned, or the error it ended with, by node.

        The module goes along by value: it need not be there.
        """
        return call_on_nodes(self._ray, module, function, args, limit_s)

    def node_resources(self) -> dict[str, dict[str, float]]:
        """CPU, GPU and object_store_memory of every node that is alive."""
        return {node.label: node.resources for node in living_nodes(self._ray)}

    def show(self, values: Mapping[str, float]) -> None:
        self._gauges.set(values)

    def stop(self, handle: Handle) -> None:
        """Kill one actor; its place in the reservation is free for another of the same name."""
        assert isinstance(handle, RayHandle)
        actor = handle.retire()
        self._actors.remove(actor)
        self._ray.kill(actor)

    async def bury(self, handle: Handle, pulse: Pulse | None) -> None:
        assert isinstance(handle, RayHandle)
        with suppress(RuntimeError):
            self.stop(handle)
        if pulse is None:
            return
        # A stopped process does not hear Ray; an engine's process may outlive its parent.
        node_id = self._node_of(pulse.host)
        if node_id is not None:
            kill = call_on_node(
                self._ray, node_id, kill_all, pulse.processes, BURY_LIMIT_S
            )
            with suppress(Exception):
                async with asyncio.timeout(2 * BURY_LIMIT_S):
                    await kill

    def _node_of(self, host: str) -> str | None:
        """A living node on a machine: nodes of one machine share its processes."""
        for entry in self._ray.nodes():
            if entry["Alive"] and entry["NodeManagerHostname"] == host:
                return str(entry["NodeID"])
        return None

    def shutdown(self) -> None:
        """Kill our actors, sweep what they held, give the reservation back; stop the cluster if it was ours."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors.clear()
        self._reservation.release()
        self._ray.shutdown()
        # On other machines the next start does it.
        sweep_held()


def note_node_address() -> None:
    """In an actor's process: keep what Ray knows this node by, where those find it who know no Ray."""
    import ray

    os.environ[NODE_ADDRESS] = ray.util.get_node_ip_address()


def _hide_ray_messages() -> None:
    """Print none of Ray's paragraphs about workers that died: the supervisor says it in a line.

    Ray has no switch for them: `log_to_driver` is about the output of workers.
    """
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None


def _signed(owner: str) -> str:
    """The name of a reservation, with who made it."""
    return f"{owner} (process {os.getpid()} on {socket.gethostname()})"
