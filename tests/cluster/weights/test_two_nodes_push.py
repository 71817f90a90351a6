"""Weights over the wire between real parts: see `tests/cluster/weights/proof.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.checkpoint.files import weight_files
from common.data.images import ImageStore
from common.push.fingerprint import fingerprint, fingerprint_of_all
from common.push.plan import TensorSpec
from tests.actors.hf_policy import HfPolicy
from tests.cluster.weights.proof import MAX_LENGTH, NUM_TOKENS, SEEDS
from tests.tiny_models import make_prompt

NAMESPACES = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork"]
CABLE = [
    *NAMESPACES,
    "ip",
    "link",
    "add",
    "near",
    "type",
    "veth",
    "peer",
    "name",
    "far",
]
"""Succeeds where `two_namespaces.sh` can do its work."""

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Between two network namespaces where this machine lets us make them, else between two raylets of one network."""
    out = tmp_path_factory.mktemp("proof")
    words = [sys.executable, "-m", "tests.cluster.weights.proof", str(out)]
    if subprocess.run(CABLE, capture_output=True, check=False).returncode == 0:
        words = ["bash", str(Path(__file__).with_name("two_namespaces.sh")), str(out)]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def outcome(out: Path) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads((out / "proof.json").read_text())
    return outcome


def test_engines_answer_as_transformers_does_with_the_new_weights(
    out: Path, outcome: dict[str, Any]
) -> None:
    hf = HfPolicy(out / "policy", MAX_LENGTH)
    store = ImageStore(out / "images")
    expected = []
    for seed in SEEDS:
        expected.append(list(hf.greedy(make_prompt(store, seed), NUM_TOKENS)))
    # The first engine has one worker, the second one two.
    assert outcome["tokens"] == [expected, expected]
    assert max(outcome["probe_errors"]) < 1e-4


def test_every_bit_is_that_of_the_export(out: Path, outcome: dict[str, Any]) -> None:
    """Engines check what comes against the fingerprints that the manifest is made of; so does this, on another way."""
    from safetensors import safe_open

    fingerprints = []
    for file in weight_files(out / "policy"):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                tensor = weights.get_tensor(name)
                dtype = str(tensor.dtype).removeprefix("torch.")
                spec = TensorSpec(name, dtype, tuple(tensor.shape))
                fingerprints.append((spec, fingerprint(tensor)))
    assert fingerprint_of_all(fingerprints) == outcome["checksum"]


def test_an_engine_that_is_killed_in_a_push_takes_no_other_along(
    outcome: dict[str, Any],
) -> None:
    assert outcome["survivors"] == [3]
    assert outcome["is_victim"] == [True]
    # Seen to be dead, not waited for.
    (failure,) = outcome["failures"]
    assert "got no answer" not in failure
    assert outcome["answers"] == len(SEEDS)
    # Long before the limit of a call.
    assert outcome["seconds"] < 100
