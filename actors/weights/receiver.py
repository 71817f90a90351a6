"""Inside the engine's process: pushed weights come in through vLLM's weight-transfer API.

A worker takes part by `worker_extension_cls=EXTENSION` and `weight_transfer_config={"backend": BACKEND}`. Weights
arrive as safetensors files in shared memory. Start, receive and finish are one RPC: between separate calls the
engine would step on half a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.engine.orphans import end_with_actor
from actors.vllm_api import (
    WeightTransferEngine,
    WeightTransferEngineFactory,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
    current_platform,
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from actors.weights import loader  # noqa: F401 (a worker that imports this file knows our loader)
from actors.weights.sender import read_weights

BACKEND = "host_arrays"
EXTENSION = "actors.weights.receiver.WeightReceiver"


@dataclass
class NoInit(WeightTransferInitInfo):  # type: ignore[misc]
    """Empty: there is no connection to a trainer to set up."""


@dataclass
class WeightFolder(WeightTransferUpdateInfo):  # type: ignore[misc]
    """The path of a folder that `actors.weights.sender` filled."""

    path: str


class HostArraysEngine(WeightTransferEngine[NoInit, WeightFolder]):  # type: ignore[misc]
    """Loads files through vLLM's layerwise reload, which undoes and redoes packing and fusing of each layer."""

    init_info_cls = NoInit
    update_info_cls = WeightFolder

    def init_transfer_engine(self, init_info: NoInit) -> None:
        """Does nothing: there is no connection to open."""

    def start_weight_update(self) -> None:
        if current_platform.is_cpu():
            _forget_expert_kernels(self.model)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: WeightFolder) -> None:
        model: Any = self.model
        model.load_weights(read_weights(Path(update_info.path)))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Does nothing: there is no connection to close."""


def _forget_expert_kernels(model: Any) -> None:
    """Let vLLM make the kernels of experts anew; it pads and packs their weights for a CPU only when it makes them.

    vLLM 0.32 else fails at a reload, or takes the weights unpacked.
    """
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


class WeightReceiver:
    """A mixin of vLLM's worker class."""

    def swap_weights(self: Any, path: str) -> None:
        """Replace all weights of the model by those of a folder, between two engine steps."""
        # Undoes fusing and packing, so that names and shapes are those of a checkpoint again.
        self.start_weight_update()
        self.update_weights({"path": path})
        self.finish_weight_update()


end_with_actor()
# vLLM looks the backend up by name when its worker starts, so importing this file must register it.
WeightTransferEngineFactory.register_engine(BACKEND, HostArraysEngine)
