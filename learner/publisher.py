"""From gathered parameters to what leaves the learner: a push to the engines, or a Hugging Face directory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from common.chat import ChatEncoder
from common.config import Lora, Tuning
from common.paths import replace_directory
from common.records import LogprobProbe, WeightManifest
from common.weights import checksum, hub_name, to_arrays
from learner.policy import Policy, adapter_norm, adapter_weights, merge_lora
from learner.quantized import dequantised

if TYPE_CHECKING:
    import numpy as np

_POLICY_PREFIX = "net."
_CHUNK_NUMEL = 1 << 22


def plain_weights(
    gathered: Mapping[str, Tensor], tuning: Tuning, policy: Policy | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Current weights by Hugging Face name, and those of the start where they are at hand: LoRA's base.

    No tensor is copied, except that LoRA adapters come merged and quantised weights whole.

    Args:
        policy: whose weights these are, when they may be quantised.
    """
    if policy is not None:
        gathered = dequantised(policy, gathered)
    current = {
        name.removeprefix(_POLICY_PREFIX): weight for name, weight in gathered.items()
    }
    return merge_lora(current, tuning) if isinstance(tuning, Lora) else (current, None)


def change_norm(
    current: Mapping[str, Tensor], start: Iterable[tuple[str, Tensor]]
) -> float:
    """L2 norm of the difference over all tensors; `start` is read once, a tensor at a time."""
    squares = []
    for name, before in start:
        name = name.removeprefix(_POLICY_PREFIX)
        sides = (
            side.reshape(-1).split(_CHUNK_NUMEL) for side in (current[name], before)
        )
        for new, old in zip(*sides, strict=True):
            squares.append(
                (new.float() - old.cpu().float()).double().square().sum().item()
            )
    return math.sqrt(math.fsum(squares))


def package(
    version: int,
    current: Mapping[str, Tensor],
    start: Iterable[tuple[str, Tensor]],
    probe: LogprobProbe | None,
) -> tuple[WeightManifest, dict[str, np.ndarray]]:  # type: ignore[type-arg]
    """The arrays of a push under hub names, and the manifest that describes exactly them.

    All tensors are sent: engines reload fused layers whole, and a frozen tower costs little beside that. The arrays
    share memory with `current`: rank 0 holds one copy of the model during a push, with LoRA its base and the merged
    layers, and no other rank any.
    """
    arrays = to_arrays(current)
    manifest = WeightManifest(
        version=version,
        checksum=checksum(arrays),
        num_tensors=len(arrays),
        num_bytes=sum(array.nbytes for array in arrays.values()),
        change_norm=change_norm(current, start),
        probe=probe,
    )
    return manifest, arrays


def package_adapter(
    version: int,
    gathered: Mapping[str, Tensor],
    tuning: Lora,
    probe: LogprobProbe | None,
) -> tuple[WeightManifest, dict[str, np.ndarray]]:  # type: ignore[type-arg]
    """The arrays of a push of adapters alone, under peft's names, and the manifest that describes exactly them."""
    weights = {
        name.removeprefix(_POLICY_PREFIX): weight for name, weight in gathered.items()
    }
    arrays = to_arrays(adapter_weights(weights))
    num_bytes = sum(array.nbytes for array in arrays.values())
    norm = adapter_norm(weights, tuning)
    return WeightManifest(
        version, checksum(arrays), len(arrays), num_bytes, norm, probe
    ), arrays


def export_policy(
    directory: Path,
    policy: Policy,
    encoder: ChatEncoder,
    gathered: Mapping[str, Tensor],
    tuning: Tuning,
    shard: str,
) -> None:
    """Write a full Hugging Face directory aside and rename it into place; a LoRA adapter stays beside in `adapter/`.

    Args:
        shard: largest size of one safetensors file, e.g. "5GB".
    """
    from huggingface_hub import save_torch_state_dict

    plain = dequantised(policy, gathered)
    weights = {
        name.removeprefix(_POLICY_PREFIX): weight for name, weight in plain.items()
    }
    model = policy.model
    merged = merge_lora(weights, tuning)[0] if isinstance(tuning, Lora) else weights
    with replace_directory(directory) as partial:
        model.config.save_pretrained(partial)
        if model.can_generate():
            model.generation_config.save_pretrained(partial)
        encoder.processor.save_pretrained(partial)
        # CLIP towers: transformers would write flattened names that vLLM does not read.
        if any(name.startswith("model.vision_tower.") for name in merged):
            named = {
                hub_name(name): weight.contiguous() for name, weight in merged.items()
            }
            save_torch_state_dict(
                named, partial, max_shard_size=shard, metadata={"format": "pt"}
            )
        else:
            model.save_pretrained(partial, state_dict=merged, max_shard_size=shard)
        if isinstance(tuning, Lora):
            policy.net.save_pretrained(partial / "adapter", state_dict=weights)
