"""From gathered parameters to what leaves the learner: a push to the engines, or a Hugging Face directory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from common.chat import ChatEncoder
from common.checkpoint.files import tensors, weight_files
from common.checkpoint.layout import Layout, layout_of
from common.checkpoint.saving import FILE_BYTES, save_tensors
from common.config import Lora, RunConfig, Tuning
from common.paths import replace_directory
from common.push.adapter import pushes_adapter
from common.push.plan import PushPlan, model_digest
from common.records import LogprobProbe, WeightManifest
from common.weights import checksum, to_arrays
from learner.change_norm import change_norm
from learner.model.lora import adapter_norm, adapter_weights, is_adapter, merge_lora
from learner.model.merging import Survival
from learner.model.models import Models
from learner.model.policy import Policy
from learner.model.quantized import dequantised
from learner.model.reference import Reference
from learner.push.sending import PushSender
from learner.push.source import WeightSource

Weights = Mapping[str, Tensor]
"""Parameters by name."""
Arrays = dict[str, NDArray[Any]]
"""What is pushed, by the checkpoint's names (or peft's)."""

_POLICY_PREFIX = "net."


class Publisher:
    """Takes the weights of a run's policy to its engines: gathered whole on rank 0, or sent a bucket at a time.

    Args:
        model_path: of the start policy.
        policy: with its adapters.
        models: with the engine that holds it.
        reference: knows the start weights.
    """

    def __init__(
        self,
        config: RunConfig,
        model_path: str,
        policy: Policy,
        models: Models,
        reference: Reference,
    ) -> None:
        self._config = config
        self._model_path = model_path
        self._policy = policy
        self._models = models
        self._reference = reference

    def publish(
        self, version: int, probe: LogprobProbe | None
    ) -> tuple[WeightManifest | None, Arrays]:
        """The weights as they are now (collective), see `Learner.publish`; the probe goes into the manifest."""
        model = self._config.model
        tuning = model.tuning
        adapter_only = pushes_adapter(model, self._config.rollout)
        wanted = is_adapter if adapter_only else _every_name
        gathered = self._models.engine.gather_weights(wanted)
        start_weights = self._reference.weights()
        if gathered is None:
            # Reading the start weights is collective: this rank takes part and keeps none.
            deque(start_weights, maxlen=0)
            return None, {}
        if adapter_only:
            assert isinstance(tuning, Lora)
            return package_adapter(version, gathered, tuning, probe)
        survival = Survival()
        current, base = plain_weights(gathered, tuning, self._policy, survival)
        start = start_weights if base is None else base.items()
        layout = layout_of(self._model_path)
        manifest, arrays = package(version, layout, current, start, probe)
        return replace(manifest, merged_survives=survival.share), arrays

    @cached_property
    def sender(self) -> PushSender:
        """Of streamed pushes."""
        models = self._models
        source = WeightSource(
            self._policy,
            models.engine,
            layout_of(self._model_path),
            self._config.model.tuning,
            models.dtype,
        )
        bucket_bytes = self._config.weights.bucket_mib << 20
        plan = PushPlan(source.specs, bucket_bytes, model_digest(self._model_path))
        return PushSender(source, plan, models.engine.rank, models.device)


def plain_weights(
    gathered: Weights,
    tuning: Tuning,
    policy: Policy | None = None,
    survival: Survival | None = None,
) -> tuple[Weights, Weights | None]:
    """Current weights by Hugging Face name, and with LoRA those of the start, which are its base weights.

    No tensor is copied, except that LoRA adapters are merged and quantised weights dequantised.

    Args:
        policy: whose weights these are, when they may be quantised; where it is, adapters are merged.
        survival: is told of what is merged.
    """
    device = torch.device("cpu")
    if policy is not None:
        gathered = dequantised(policy, gathered)
        device = device_of(policy)
    current = _without_prefix(gathered)
    if isinstance(tuning, Lora):
        return merge_lora(current, tuning, survival, device)
    return current, None


def package(
    version: int,
    layout: Layout,
    current: Weights,
    start: Iterable[tuple[str, Tensor]],
    probe: LogprobProbe | None,
) -> tuple[WeightManifest, Arrays]:
    """The arrays of a push under the checkpoint's names, and the manifest that describes exactly them.

    All tensors are sent: engines reload fused layers whole, and a frozen vision encoder costs little beside that. The
    arrays share memory with `current`: rank 0 holds one copy of the model during a push, with LoRA its base and the
    merged layers; the other ranks hold none.
    """
    arrays = to_arrays(layout.pushed(current))
    norm = change_norm(_beside(current, start))
    return _manifest(version, arrays, norm, probe), arrays


def package_adapter(
    version: int,
    gathered: Weights,
    tuning: Lora,
    probe: LogprobProbe | None,
) -> tuple[WeightManifest, Arrays]:
    """The arrays of a push of adapters alone, under peft's names, and the manifest that describes exactly them."""
    weights = _without_prefix(gathered)
    arrays = to_arrays(adapter_weights(weights).items())
    norm = adapter_norm(weights, tuning)
    return _manifest(version, arrays, norm, probe), arrays


def _beside(
    current: Weights,
    start: Iterable[tuple[str, Tensor]],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every weight as it is now, with what it was at the start."""
    for name, before in start:
        yield current[name.removeprefix(_POLICY_PREFIX)], before


def _manifest(
    version: int,
    arrays: Arrays,
    norm: float,
    probe: LogprobProbe | None,
) -> WeightManifest:
    """The manifest of exactly these arrays."""
    num_bytes = sum(array.nbytes for array in arrays.values())
    return WeightManifest(
        version=version,
        checksum=checksum(arrays),
        num_tensors=len(arrays),
        num_bytes=num_bytes,
        change_norm=norm,
        probe=probe,
    )


def export_policy(
    directory: Path,
    policy: Policy,
    encoder: ChatEncoder,
    gathered: Weights,
    tuning: Tuning,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write a full Hugging Face directory aside and rename it into place; a LoRA adapter is added as `adapter/`.

    Tensors are named as in the start policy's checkpoint, and what the policy does not hold is carried over from there.

    Args:
        encoder: of the start policy.
        file_bytes: largest size of one safetensors file.
    """
    weights = _without_prefix(dequantised(policy, gathered))
    model = policy.model
    merged = weights
    if isinstance(tuning, Lora):
        merged, _ = merge_lora(weights, tuning, device=device_of(policy))
    with replace_directory(directory) as partial:
        model.config.save_pretrained(partial)
        if model.can_generate():
            model.generation_config.save_pretrained(partial)
        encoder.processor.save_pretrained(partial)
        whole = _with_carried(encoder.model_path, merged)
        save_tensors(partial, whole, file_bytes)
        if isinstance(tuning, Lora):
            policy.net.save_pretrained(partial / "adapter", state_dict=weights)


def device_of(policy: Policy) -> torch.device:
    """Where its parameters are."""
    return next(policy.parameters()).device


def policy_bytes(policy: Policy, start: Path) -> int:
    """About what an export takes on disk.

    Args:
        start: directory of the start policy, whose files hold quantised weights whole.
    """
    held = 0
    for parameter in policy.parameters():
        # ZeRO-3 leaves a rank its piece only, and says how large the whole is.
        numel = getattr(parameter, "ds_numel", parameter.numel())
        held += numel * parameter.element_size()
    of_start = sum(file.stat().st_size for file in weight_files(start))
    return max(held, of_start)


def _with_carried(
    start: Path,
    weights: Weights,
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the weights, and those of the start policy's files that no weight is held in."""
    layout = layout_of(start)
    yield from layout.tensors(weights)

    def is_carried(name: str) -> bool:
        return layout.readable_name(name) in layout.carried

    for name, tensor in tensors(start, is_carried):
        yield layout.readable(name, tensor)


def _without_prefix(gathered: Weights) -> dict[str, Tensor]:
    """Parameters of `Policy` by their names in the Hugging Face model."""
    weights: dict[str, Tensor] = {}
    for name, weight in gathered.items():
        weights[name.removeprefix(_POLICY_PREFIX)] = weight
    return weights


def _every_name(name: str) -> bool:
    return True
