"""Pushes of adapters alone (`model.tuning.push = adapter`): checked, then handed to vLLM as a peft directory.

The engine keeps the start policy's weights and runs the one adapter beside them. Every request carries it from the
start on, as an adapter of zeros before the first push, so that what is in flight during a push follows it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
from safetensors.torch import save_file

from actors.shared_memory import check_room, shared_folder
from actors.vllm_api import LoRARequest, MaxLoRARanks
from common.config import Lora, Model
from common.errors import UserError
from common.protocols import Tensors
from common.records import WeightManifest
from common.weights import BFLOAT16, checksum, from_arrays

_HUB, _PEFT = (
    "language_model.model.layers.",
    "base_model.model.model.language_model.layers.",
)
"""Beginnings of a layer's name in the hub scheme and in peft's files."""

Shapes = Mapping[str, tuple[int, ...]]
"""The start policy's tensors by hub name."""


def pushed_adapter(model: Model) -> Lora | None:
    """The tuning whose adapters alone are pushed; None where pushes are of whole weights."""
    tuning = model.tuning
    return tuning if isinstance(tuning, Lora) and tuning.push == "adapter" else None


def lora_arguments(tuning: Lora) -> dict[str, object]:
    """vLLM engine arguments for one adapter.

    Raises:
        UserError: vLLM takes no adapter of this rank.
    """
    ranks = sorted(rank for rank in get_args(MaxLoRARanks) if rank >= tuning.r)
    if not ranks:
        raise UserError(
            f"model.tuning.r: expected at most {max(get_args(MaxLoRARanks))} for push = adapter, got {tuning.r}; "
            "lower it or set push = merged"
        )
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": ranks[0]}


def adapter_request(folder: Path | str, load: bool) -> LoRARequest:
    """vLLM's name for the adapter; `load` reads the folder, in place of what the name stood for."""
    return LoRARequest("policy", 1, str(folder), load_inplace=load)


def zero_adapter(shapes: Shapes, tuning: Lora) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """An adapter that changes nothing: where the learner's are, and of their shapes."""
    arrays = {}
    for name, shape in shapes.items():
        layer = name.removesuffix(".weight")
        if name.startswith(_HUB) and layer.rpartition(".")[2] in tuning.target_modules:
            layer = _PEFT + layer.removeprefix(_HUB)
            arrays[f"{layer}.lora_A.weight"] = np.zeros(
                (tuning.r, shape[1]), np.float32
            )
            arrays[f"{layer}.lora_B.weight"] = np.zeros(
                (shape[0], tuning.r), np.float32
            )
    return arrays


def check_adapter(
    manifest: WeightManifest, tensors: Tensors, shapes: Shapes, tuning: Lora
) -> None:
    """Refuse a push that is not the manifest's, or no adapter of this model and configuration.

    Raises:
        UserError: checksum, names or shapes differ.
    """
    expected = {
        name: array.shape for name, array in zero_adapter(shapes, tuning).items()
    }
    found = {
        name.removesuffix(BFLOAT16): array.shape for name, array in tensors.items()
    }
    head = f"weights {manifest.version}: expected the {len(expected)} tensors of an adapter, got "
    wrong = sorted(
        name for name in expected.keys() & found.keys() if expected[name] != found[name]
    )
    for what, names in (
        ("without", sorted(expected.keys() - found.keys())),
        ("unknown", sorted(found.keys() - expected.keys())),
        ("of another shape", wrong),
    ):
        if names:
            raise UserError(
                f"{head}{len(names)} {what}: {', '.join(names[:3])}; learner and engine differ in tuning"
            )
    if (digest := checksum(tensors)) != manifest.checksum:
        raise UserError(
            f"weights {manifest.version}: expected checksum {manifest.checksum[:16]}, got {digest[:16]}; publish again"
        )


@contextmanager
def shared_adapter(tensors: Tensors, tuning: Lora) -> Iterator[Path]:
    """A peft directory in shared memory, readable by this user only, gone afterwards.

    Raises:
        UserError: shared memory is too small for it.
    """
    check_room(tensors)
    settings = {
        "peft_type": "LORA",
        "r": tuning.r,
        "lora_alpha": tuning.alpha,
        "target_modules": list(tuning.target_modules),
        "bias": "none",
    }
    with shared_folder() as folder:
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        save_file(from_arrays(tensors), folder / "adapter_model.safetensors")
        yield folder
