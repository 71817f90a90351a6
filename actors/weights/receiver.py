"""Inside the engine's process: pushed weights come in through vLLM's weight-transfer API.

A worker takes part by `worker_extension_cls=EXTENSION` and `weight_transfer_config={"backend": BACKEND}`. Weights
arrive as safetensors files in shared memory, or in buckets from the learner; the second as with vLLM's engine
`nccl`: a seat in a group at the start, names, dtypes and shapes with the update, then packed broadcasts. Start,
receive and finish are one RPC: between separate calls the engine would step on half a model.

vLLM's own `nccl` engine is not used. Its other end would bring vLLM into the learner's process, it pickles what its
members tell each other, and a member that dies leaves the others waiting. Group and buckets are `common.push`, over
gloo here and over NCCL on GPUs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from actors.engine.orphans import end_with_actor
from actors.vllm_api import (
    WeightTransferEngine,
    WeightTransferEngineFactory,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
    current_platform,
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)
from actors.weights import loader  # noqa: F401 (a worker that imports this file knows our loader)
from actors.weights.reached import check_reached, unreached_layers
from actors.weights.sender import read_weights
from common.push.meeting import Group, PushBroken, Unreachable, join, meeting_of
from common.push.plan import PushPlan
from common.push.wire import DamagedBucket, receive

BACKEND = "pushed"
EXTENSION = "actors.weights.receiver.WeightReceiver"


@dataclass
class Seat(WeightTransferInitInfo):  # type: ignore[misc]
    """A place in the group of one push.

    Attributes:
        meeting: `common.push.meeting.Meeting` as JSON.
        first_rank: of this engine's workers.
    """

    meeting: dict[str, Any]
    first_rank: int


@dataclass
class Update(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Where the weights are: in a folder of safetensors files, or on their way in the buckets of a plan.

    Attributes:
        path: of a folder that `actors.weights.sender` wrote.
        plan: `common.push.plan.PushPlan` as JSON.
        kept: names of tensors that the rollout worker wants, too.
        kept_in: file for the first worker to write them to.
    """

    path: str = ""
    plan: dict[str, Any] | None = None
    kept: Collection[str] = ()
    kept_in: str = ""


class PushedWeights(WeightTransferEngine[Seat, Update]):  # type: ignore[misc]
    """Loads through vLLM's layerwise reload, which undoes and redoes packing and fusing of each layer."""

    init_info_cls = Seat
    update_info_cls = Update

    _group: Group | None = None
    _broken = ""

    def init_transfer_engine(self, init_info: Seat) -> None:
        meeting = meeting_of(init_info.meeting)
        rank = init_info.first_rank + self.parallel_config.rank
        self._broken = "an engine's worker failed; see its log"
        self._group = join(meeting, rank, meeting.store(), self.device)

    def start_weight_update(self) -> None:
        if current_platform.is_cpu():
            _forget_expert_kernels(self.model)
        _forget_half_push(self.model)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Update) -> None:
        model: Any = self.model
        if update_info.plan is None:
            model.load_weights(read_weights(Path(update_info.path)))
            return
        assert self._group is not None, "a seat comes first"
        plan = PushPlan.of_json(update_info.plan)
        kept: dict[str, torch.Tensor] = {}
        is_first = self.parallel_config.rank == 0
        names = update_info.kept if is_first else ()
        tensors = _keeping(receive(plan, self._group), names, kept)
        model.load_weights(tensors)
        # A loader may stop at the last name that it wants.
        for _ in tensors:
            pass
        self._broken = ""
        if kept:
            Path(update_info.kept_in).write_bytes(save(kept))

    def finish_weight_update(self) -> None:
        self.unreached = unreached_layers(self.model)
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        if self._group is not None:
            self._group.leave(self._broken)
            self._group = None


def _keeping(
    tensors: Iterator[tuple[str, torch.Tensor]],
    names: Collection[str],
    kept: dict[str, torch.Tensor],
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors, those of these names copied to the CPU as they pass."""
    wanted = set(names)
    for name, tensor in tensors:
        if name in wanted:
            kept[name] = tensor.to("cpu", copy=True)
        yield name, tensor


def _forget_half_push(model: Any) -> None:
    """Let vLLM count a layer's weights from none: a push that broke off may have left some of them."""
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            info.loaded_weights.clear()
            info.load_numel = 0


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
        self._finish()

    def _finish(self: Any) -> None:
        self.finish_weight_update()
        # Afterwards: vLLM takes no further push while one is not finished.
        check_reached(self.weight_transfer_engine.unreached)

    def receive_push(
        self: Any, seat: dict[str, Any], update: dict[str, Any]
    ) -> tuple[str, str]:
        """Replace all weights by those that the learner sends, between two engine steps.

        Returns:
            What went wrong, `broken`, `unreachable` or `damaged`, and a message; or two empty texts. An error would
            pass vLLM's RPC as a text without its type.
        """
        try:
            self.init_weight_transfer_engine(seat)
            self.start_weight_update()
            self.update_weights(update)
            self._finish()
        except PushBroken as error:
            return "broken", str(error)
        except Unreachable as error:
            return "unreachable", str(error)
        except DamagedBucket as error:
            return "damaged", str(error)
        finally:
            # Also after an error, which the others then learn of at once.
            self.weight_transfer_engine.shutdown()
        return "", ""


# Importing this file is all that a worker does of ours before it loads a model. It must not outlive the actor from here
# on, and must know the backend, which vLLM looks up by name.
end_with_actor()
WeightTransferEngineFactory.register_engine(BACKEND, PushedWeights)
