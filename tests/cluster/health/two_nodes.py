"""Starts a Ray cluster of two nodes on this machine, and prints what the doctor and two actors see there, as JSON.

A process of its own: one that has loaded models cannot fork Ray's.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Bind to loopback, as the runtime does.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

VARIABLES = ("NCCL_DEBUG", "SIGHTLINE_TEST_TOKEN", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")


class Reader:
    """An actor that tells its environment."""

    def __init__(self, names: list[str]) -> None:
        self.at_start = {name: os.environ.get(name) for name in names}

    async def read(self) -> dict[str, str | None]:
        return self.at_start


def main(run_dir: str, value: str, secret: str) -> None:
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    for _ in range(2):
        nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
    start = time.monotonic()
    report = doctors_report(nodes.address, run_dir)
    seconds = time.monotonic() - start
    seen, traces = actors_view(nodes.address, value, secret)
    nodes.shutdown()
    answer = {"report": report, "seconds": seconds, "seen": seen, "traces": traces}
    print(json.dumps(answer))


def doctors_report(address: str, run_dir: str) -> dict[str, Any]:
    from cluster import doctor

    words = ["--quick", "--json", "--cluster.address", address, "--run.dir", run_dir]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        doctor.main(words)
    report: dict[str, Any] = json.loads(output.getvalue())
    return report


def actors_view(address: str, value: str, secret: str) -> tuple[Any, dict[str, bool]]:
    """What an actor on each node has, and which texts stand in Ray's logs or on a command line."""
    import ray

    from cluster.placement.bundles import Bundle
    from cluster.runtime.ray_runtime import RayRuntime
    from common.config import Cluster

    os.environ["SIGHTLINE_TEST_TOKEN"] = secret
    config = Cluster(
        address=address,
        env={"NCCL_DEBUG": value},
        pass_env=("SIGHTLINE_TEST_TOKEN",),
    )
    names = ["one", "two"]
    runtime = RayRuntime(config, [Bundle(name, 1, 0, "") for name in names])
    calls = []
    for name in names:
        reader = runtime.spawn(
            Reader, list(VARIABLES), name=name, num_cpus=1, num_gpus=0
        )
        calls.append(reader.call("read"))
    seen = ray.get(calls)
    node = ray._private.worker._global_node
    assert node is not None
    written = texts_written(Path(node.get_session_dir_path()))
    traces = {text: text in written for text in (value, secret)}
    runtime.shutdown()
    return seen, traces


def texts_written(session: Path) -> str:
    """Ray's logs, and the command lines of all other processes."""
    texts = []
    for path in (session / "logs").rglob("*"):
        if path.is_file():
            texts.append(path.read_text(errors="replace"))
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        # Processes end meanwhile; this one has both texts among its arguments.
        with contextlib.suppress(OSError):
            if path.parent.name != str(os.getpid()):
                texts.append(path.read_text(errors="replace"))
    return "\n".join(texts)


if __name__ == "__main__":
    main(*sys.argv[1:])
