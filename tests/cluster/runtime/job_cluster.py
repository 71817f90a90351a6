"""A cluster as `ray start` makes it, with its dashboard, on this machine's loopback address; of one node or of two.

The second node is what `python -m tests.cluster.runtime.job_cluster HEAD FOLDER` starts: the command line of Ray
refuses a second node on loopback.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from common.machine.address import free_port

LIMIT_S = 60.0
STORE_BYTES = 100 << 20
LOOPBACK = "127.0.0.1"
READY = "ready"
RAY = ("-m", "ray.scripts.scripts")
"""The command line of Ray, for this Python."""


class JobCluster:
    """A head and, when `num_nodes` is 2, another node, each with a temporary folder of its own. A context manager.

    Attributes:
        address: of the head, for drivers.
        dashboard: URL, for `ray job submit`.
        environment: of every command that talks to this cluster, with its token where it has one.
    """

    def __init__(
        self, with_token: bool, num_nodes: int = 1, cpus_per_node: int = 2
    ) -> None:
        self.num_nodes = num_nodes
        self._cpus_per_node = cpus_per_node
        # Short, for sockets have short paths.
        self.folder = Path(tempfile.mkdtemp(prefix="rj-"))
        self.environment = self._environment(with_token)
        self._port = free_port()
        dashboard_port = free_port()
        self.address = f"{LOOPBACK}:{self._port}"
        self.dashboard = f"http://{LOOPBACK}:{dashboard_port}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._node: subprocess.Popen[bytes] | None = None
        try:
            self._start_head(dashboard_port, cpus_per_node)
            if num_nodes == 2:
                self.start_node()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> JobCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all processes of the cluster, and delete its folder."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._kill_those_of(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _environment(self, with_token: bool) -> dict[str, str]:
        variables = dict(os.environ)
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            variables.pop(name, None)
        home = self.folder / "home"
        home.mkdir()
        if with_token:
            (home / ".ray").mkdir()
            (home / ".ray" / "auth_token").write_text(secrets.token_hex(32))
        return {
            **variables,
            "RAY_AUTH_MODE": "token" if with_token else "disabled",
            "HOME": str(home),
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
            # Bind to loopback alone.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }

    def _start_head(self, dashboard_port: int, num_cpus: int) -> None:
        options = {
            "port": self._port,
            "node-ip-address": LOOPBACK,
            "dashboard-host": LOOPBACK,
            "dashboard-port": dashboard_port,
            "dashboard-agent-listen-port": free_port(),
            "ray-client-server-port": free_port(),
            "num-cpus": num_cpus,
            "object-store-memory": STORE_BYTES,
            "temp-dir": self.folder / "a",
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        # The head finds the token in the home folder; every other command has to be told of it.
        self._start("head", *RAY, "start", "--head", "--block", *words)
        self._wait_until(self._dashboard_answers)

    def start_node(self) -> None:
        """Add the second node."""
        folder = self.folder / "b"
        module = "tests.cluster.runtime.job_cluster"
        words = (self.address, str(folder), str(self._cpus_per_node))
        self._node = self._start("node", "-m", module, *words)
        self._wait_until((folder / READY).exists)

    def kill_node(self) -> None:
        """Kill every process of the second node at once, as a power failure does."""
        node = self._node
        assert node is not None
        folder = self.folder / "b"
        self._kill_those_of(folder)
        node.kill()
        node.wait()
        self._processes.remove(node)
        shutil.rmtree(folder, ignore_errors=True)

    def _start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=self.folder if name == "head" else None,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT_S
        while not condition():
            logs = [path.read_text() for path in self.folder.glob("*.log")]
            all_alive = all(process.poll() is None for process in self._processes)
            assert all_alive and time.monotonic() < end, "\n".join(logs)[-3000:]
            time.sleep(0.2)

    def _dashboard_answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.dashboard}/api/version", timeout=5):
                return True
        except urllib.error.HTTPError:
            # It wants the token.
            return True
        except OSError:
            return False

    def _kill_those_of(self, folder: Path) -> None:
        """Kill the processes of a node, some of which are in sessions of their own: all name its folder."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (process / "cmdline").read_bytes()
                environment = (process / "environ").read_bytes()
                if str(folder).encode() in command + environment:
                    os.kill(int(process.name), signal.SIGKILL)


def serve(address: str, folder: str, num_cpus: int) -> None:
    """Be a node until this process is killed."""
    import ray
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    Path(folder).mkdir(exist_ok=True)
    parameters = RayParams(
        gcs_address=address,
        redis_address=address,
        node_ip_address=LOOPBACK,
        num_cpus=num_cpus,
        num_gpus=0,
        object_store_memory=STORE_BYTES,
        min_worker_port=0,
        max_worker_port=0,
        dashboard_agent_listen_port=free_port(),
        temp_dir=folder,
    )
    assert ray.__version__
    Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=False)
    (Path(folder) / READY).touch()
    signal.pause()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
