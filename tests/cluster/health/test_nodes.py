"""What differs between the nodes of a cluster is one line; what is well on a node is one line, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from cluster.health.facts import Facts
from cluster.health.finding import Finding
from cluster.health.machine import check_open_files, check_shared_memory
from cluster.health.needs import Needs, check_plan, needs_of, planned_needs
from cluster.health.nodes import (
    ClockReading,
    Cluster,
    check_clocks,
    check_cluster,
    check_node,
    check_same,
)
from common.config import SHAPES_POLICY
from common.config.overrides import load_config
from tests.cluster.health.machines import machine
from tests.cluster.planner.model_configs import write

GIB = 2**30
NEEDS = Needs(
    shared_memory=70 * GIB,
    object_store=14 * GIB,
    disk=0,
    cpus=64,
    gpus=16,
    nodes=2,
    environment={},
)
RESOURCES = {"CPU": 96.0, "GPU": 8.0, "object_store_memory": 40.0 * GIB}


def cluster_of(**nodes: Facts) -> Cluster:
    return Cluster(
        facts=nodes,
        silent={},
        resources=dict.fromkeys(nodes, RESOURCES),
        clocks={name: ClockReading(0.01, 0.02) for name in nodes},
        run_dir=Path("/runs/r"),
        probe=Path("/runs/r/.doctor-1"),
    )


def problems(cluster: Cluster, needs: Needs | None = NEEDS) -> dict[str, Finding]:
    findings = check_cluster(cluster, ["/models/m"], needs)
    return {finding.name: finding for finding in findings if finding.remedy}


def test_a_sound_cluster() -> None:
    cluster = cluster_of(a=machine(), b=machine(host="b"))
    assert problems(cluster) == {}
    findings = {
        item.name: item.state for item in check_cluster(cluster, ["/models/m"], NEEDS)
    }
    assert findings == {
        "cluster": "2 nodes, 192 CPUs, 16 GPUs; the run reserves 64 CPUs, 16 GPUs",
        "environment": "the same on all nodes: Python 3.11.7, code c0de",
        "run.dir": "/runs/r is shared by all nodes",
        "model folder": "/models/m is there on all nodes",
        "clocks": "within 0.0 s of this machine's",
        "node a": "/shared/.venv/bin/python, GPU 8 x NVIDIA H100 80GB HBM3, 81559 MiB",
        "node b": "/shared/.venv/bin/python, GPU 8 x NVIDIA H100 80GB HBM3, 81559 MiB",
    }


def test_what_differs_is_one_line_by_node() -> None:
    other = {**machine().versions, "torch": "2.12.0"}
    lacking = dict(other)
    del lacking["torch"]
    nodes = {
        "a": machine(),
        "b": machine(versions=other, code="0ld"),
        "c": machine(versions=lacking, python="3.12.1"),
    }
    findings = {finding.name: finding for finding in check_same(nodes)}
    assert findings["torch"].state == "1.0 on a; 2.12.0 on b; none on c"
    assert findings["sightline's code"].state == "c0de on a, c; 0ld on b"
    assert findings["Python"].state == "3.11.7 on a, b; 3.12.1 on c"
    assert len(findings) == 3
    assert all(finding.level == "failure" for finding in findings.values())


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"present": {"/models/m": True}}, "run.dir", "/runs/r of this machine is not seen on b"),
        ({"present": {"/runs/r/.doctor-1": True}}, "model folder", "/models/m is missing on b"),
        ({"failed_imports": {"torch": "OSError: libcudart.so.13"}}, "node b: import torch", "OSError: libcudart.so.13"),
        ({"shared_memory": 64 << 20}, "node b: shared memory", "--shm-size=70g"),
        ({"nvidia_smi": "NVIDIA X, 1 MiB, 550.1"}, "node b: driver", "driver 580 or newer"),
        ({"interfaces": []}, "node b: interface", "connect the nodes"),
    ],
)  # fmt: skip
def test_what_one_node_lacks(changes: dict[str, Any], name: str, words: str) -> None:
    cluster = cluster_of(a=machine(), b=machine(**changes))
    if "nvidia_smi" in changes:
        pytest.importorskip("nvidia.nccl", reason="the wheels' CUDA is not known")
    finding = problems(cluster)[name]
    assert finding.level == "failure"
    assert words in f"{finding.state} {finding.remedy}"


def test_what_slows_a_node_is_a_warning() -> None:
    facts = machine(open_files=1024, infiniband={})
    resources = {**RESOURCES, "object_store_memory": 1.0 * GIB}
    findings = {item.name: item for item in check_node("b", facts, resources, NEEDS)}
    assert set(findings) == {
        "node b: open files",
        "node b: object store",
        "node b: InfiniBand",
    }
    assert {finding.level for finding in findings.values()} == {"warning"}
    assert (
        "--object-store-memory 18038862643" in findings["node b: object store"].remedy
    )


def test_a_cluster_that_is_too_small_and_a_node_that_is_silent() -> None:
    cluster = cluster_of(a=machine())
    cluster.silent["b"] = "ModuleNotFoundError: x"
    of_cluster = problems(cluster)
    assert of_cluster["cluster"].level == "failure"
    assert of_cluster["node b"].state == "no answer: ModuleNotFoundError: x"


def test_a_clock_counts_only_beyond_what_the_call_took() -> None:
    slow_call = {"a": ClockReading(5.0, 6.0)}
    assert check_clocks(slow_call).level == "ok"
    finding = check_clocks({"a": ClockReading(0.1, 0.1), "b": ClockReading(-7.0, 0.5)})
    assert (finding.level, finding.state) == ("warning", "b -7.0 s")


def test_machine_limits() -> None:
    assert check_open_files(-1).level == "ok"
    assert check_open_files(65_536).level == "ok"
    assert "ulimit -n 65536" in check_open_files(1024).remedy
    assert check_shared_memory(None, GIB, "a push", True).state == "no /dev/shm"
    enough = check_shared_memory(3 * GIB, 2 * GIB, "a push", True)
    assert (enough.level, enough.state) == ("ok", "3.0 GiB free, a push needs 2.0 GiB")
    small = check_shared_memory(GIB, 1.5 * GIB, "the demo", False)
    assert small.level == "warning" and "sizeLimit: 2Gi" in small.remedy


def test_needs_are_the_plans() -> None:
    """A push of the shapes policy is all its float32 numbers: in the object store, and once more for its engine."""
    words = ["--mixture.online_fraction=1", "--cluster.env.A=b"]
    config = load_config(None, [*words, "--weights.transport=object_store"])
    needs = needs_of(config)
    weights = load_file(Path(SHAPES_POLICY) / "model.safetensors")
    assert needs.object_store == sum(tensor.nbytes for tensor in weights.values())
    assert needs.shared_memory == 2 * needs.object_store
    assert (needs.cpus, needs.gpus, needs.nodes) == (2, 0, 1)
    assert needs.environment == {"A": "b"}


def test_a_model_that_is_not_here_has_no_plan() -> None:
    config = load_config(Path("cluster/configs/llava16_7b_mixed.toml"))
    needs, (finding,) = planned_needs(config)
    assert needs is None
    assert finding.level == "warning"
    assert "models/llava-v1.6-vicuna-7b-hf/config.json" in finding.state


def test_a_plan_that_does_not_fit_is_a_failure(tmp_path: Path) -> None:
    """All of 7 B trained: 14 bytes a parameter over four ranks do not fit in 44 GiB beside the reference."""
    model = write("llava-v1.6-vicuna-7b-hf", tmp_path)
    preset = Path("cluster/configs/llava16_7b_mixed.toml")
    words = ["--model.path", str(model), "--cluster.gpu"]
    (fits,) = check_plan(load_config(preset, [*words, "h100"]))
    assert (fits.level, fits.state) == ("ok", "fits, by what is known of h100")
    small = load_config(preset, [*words, "l40s", "--model.tuning.kind", "full"])
    findings = list(check_plan(small))
    assert "failure" in {finding.level for finding in findings}
    assert findings[0].state.startswith("learner: expected at most ")
