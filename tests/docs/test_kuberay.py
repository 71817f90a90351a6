"""The Kubernetes manifests: against a schema of the fields that they use, each other, and the planner."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.health.needs import Needs, needs_of
from common.config.overrides import load_config
from tests.cluster.planner.model_configs import write

RECIPES = Path(__file__).parents[2] / "docs" / "cluster"
SCHEMA = json.loads(Path(__file__).with_name("kuberay.json").read_text())
UNITS = {"Gi": 2**30, "Ti": 2**40}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((RECIPES / name).read_text()))


def spec_of(name: str) -> dict[str, Any]:
    """The cluster of a file."""
    *_, last = documents(name)
    spec: dict[str, Any] = last["spec"]
    return spec.get("rayClusterSpec", spec)


@pytest.mark.parametrize("name", ["ray_cluster.yaml", "ray_job.yaml"])
def test_a_manifest_follows_the_schema(name: str) -> None:
    for document in documents(name):
        jsonschema.validate(document, SCHEMA)


HEAD = ("spec", "rayClusterSpec", "headGroupSpec")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entryPoint"), "x"),
        (("spec", "backoffLimit"), "3"),
        ((*HEAD, "rayStartParams", "num-cpus"), 8),
        ((*HEAD, "template", "spec", "volumes", 1, "emptyDir", "sizeLimit"), "9GB"),
    ],
)
def test_the_schema_refuses_what_kubernetes_would(
    path: tuple[Any, ...], value: Any
) -> None:
    (document,) = documents("ray_job.yaml")
    changed = copy.deepcopy(document)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed, SCHEMA)


def test_both_files_make_the_same_cluster() -> None:
    assert spec_of("ray_cluster.yaml") == spec_of("ray_job.yaml")


def test_ray_is_the_version_of_the_image() -> None:
    pinned = Path("requirements/gpu.txt").read_text()
    assert f"\nray=={spec_of('ray_job.yaml')['rayVersion']}\n" in pinned


def test_every_volume_is_mounted_where_it_is_meant() -> None:
    (claim, _) = documents("ray_cluster.yaml")
    spec = spec_of("ray_job.yaml")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {
            mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]
        }
        assert set(mounts) == {"/dev/shm", "/shared"}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        claimed = volumes[mounts["/shared"]]["persistentVolumeClaim"]["claimName"]
        assert claimed == claim["metadata"]["name"]
        assert container["resources"]["requests"] == container["resources"]["limits"]


def planned(tmp_path: Path) -> Needs:
    """The needs of the job's run, with a model's config file in the place of its model."""
    (job,) = documents("ray_job.yaml")
    entrypoint = job["spec"]["entrypoint"].replace("/sightline/", "")
    words = shlex.split(entrypoint.partition("cluster.train")[2])
    words.remove("--resume")
    preset, *overrides = words
    place = overrides.index("--model.path") + 1
    overrides[place] = str(write(Path(overrides[place]).name, tmp_path))
    return needs_of(load_config(Path(preset), overrides))


def size_of(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]


def test_nodes_are_large_enough_for_the_plan(tmp_path: Path) -> None:
    """A node's shared memory holds a push and Ray's object store, and is a part of its memory."""
    needs = planned(tmp_path)
    (group,) = spec_of("ray_job.yaml")["workerGroupSpecs"]
    pod = group["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    (shm,) = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
    store = int(group["rayStartParams"]["object-store-memory"])
    assert store >= needs.object_store
    # The plan counts the push in the object store as well.
    needed = needs.shared_memory - needs.object_store + store
    assert (
        needed <= size_of(shm["emptyDir"]["sizeLimit"]) < size_of(limits["memory"]) / 2
    )
    assert int(limits["nvidia.com/gpu"]) == needs.gpus
    assert int(limits["cpu"]) >= needs.cpus
