"""Pushes of adapters alone (`common.push.adapter`), handed to vLLM as a peft directory.

The engine keeps the start policy's weights and runs one adapter beside them. Every request carries the adapter, which
is all zeros before the first push: so a request that is in flight during a push follows it.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors.torch import save_file

from actors.vllm_api import LoRARequest, MaxLoRARanks
from actors.weights.sender import write_checked
from actors.weights.shared_memory import shared_folder
from common.config import Lora, Model, Rollout
from common.model_parts import lora_targets
from common.protocols import Tensors
from common.push.adapter import pushes_adapter
from common.records import WeightManifest
from common.weights import Array, checksum, from_arrays

# vLLM maps transformers' names of layers, behind this prefix of peft's, to its own.
_PEFT_PREFIX = "base_model.model."


def pushed_adapter(model: Model, rollout: Rollout) -> Lora | None:
    """The tuning whose adapters alone are pushed; None if whole weights are pushed."""
    tuning = model.tuning
    if isinstance(tuning, Lora) and pushes_adapter(model, rollout):
        return tuning
    return None


def lora_arguments(
    model: Any,
    tuning: Lora,
) -> dict[str, object]:
    """vLLM engine arguments for one adapter that passes `common.push.adapter.check_adapter`.

    Args:
        model: the policy in transformers, without memory.
        tuning: which layers carry adapters, and their rank.
    """
    supported = get_args(MaxLoRARanks)
    # vLLM allocates for one of a few ranks, and smaller adapters fit in.
    large_enough = [rank for rank in supported if rank >= tuning.r]
    layers = {target.rpartition(".")[2] for target in lora_targets(model, tuning)}
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": min(large_enough),
        # Without these vLLM makes room for adapters on layers that have none, such as experts.
        "lora_target_modules": sorted(layers),
    }


def adapter_request(
    folder: Path | str,
    load: bool,
) -> LoRARequest:
    """How a request names the adapter. With `load`, vLLM reads the folder again and replaces the adapter it has."""
    # One name and number for ever: requests in flight keep theirs when the weights behind it change.
    return LoRARequest(
        "policy",
        1,
        str(folder),
        load_inplace=load,
    )


def adapter_shapes(
    model: Any,
    tuning: Lora,
) -> dict[str, tuple[int, int]]:
    """Shapes of the learner's adapter tensors by peft name.

    Args:
        model: the policy in transformers, without memory.
        tuning: which layers carry adapters, and their rank.
    """
    shapes = {}
    for target in lora_targets(model, tuning):
        num_outputs, num_inputs = model.get_submodule(target).weight.shape
        layer = _PEFT_PREFIX + target
        shapes[f"{layer}.lora_A.weight"] = (tuning.r, num_inputs)
        shapes[f"{layer}.lora_B.weight"] = (num_outputs, tuning.r)
    return shapes


def zero_adapter(
    model: Any,
    tuning: Lora,
) -> tuple[WeightManifest, dict[str, Array]]:
    """An adapter that changes nothing, with the learner's names and shapes, as a push of version 0."""
    arrays: dict[str, Array] = {}
    for name, shape in adapter_shapes(model, tuning).items():
        arrays[name] = np.zeros(shape, np.float32)
    num_bytes = sum(array.nbytes for array in arrays.values())
    manifest = WeightManifest(0, checksum(arrays), len(arrays), num_bytes, 0.0)
    return manifest, arrays


def shared_adapter(
    manifest: WeightManifest,
    tensors: Tensors,
    tuning: Lora,
    patience_s: float,
) -> AbstractContextManager[Path]:
    """A peft directory in shared memory (see `shared_folder`), which the first engine of a node writes.

    Raises:
        UserError: shared memory is too small, or the bytes are not those of the manifest.
    """
    settings = {
        "peft_type": "LORA",
        "r": tuning.r,
        "lora_alpha": tuning.alpha,
        "target_modules": list(tuning.target_modules),
        "bias": "none",
    }
    config = json.dumps(settings)
    # Equal tensors of runs with another scale are another adapter.
    content = f"{manifest.checksum}-{sha256(config.encode()).hexdigest()}"
    fill = partial(_write, manifest, tensors, config)
    return shared_folder(content, fill, patience_s)


def _write(
    manifest: WeightManifest,
    tensors: Tensors,
    config: str,
    folder: Path,
) -> None:
    (folder / "adapter_config.json").write_text(config)
    path = folder / "adapter_model.safetensors"
    write = partial(save_file, from_arrays(tensors), path)
    write_checked(manifest, tensors, [write])
