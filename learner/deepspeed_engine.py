"""The training engine on DeepSpeed: ZeRO 0-3, any number of ranks, CPU (gloo) or GPU (nccl). Only file that imports it.

DeepSpeed runs with `managed_gradient_accumulation: false`: `backward` only accumulates, `step` is the boundary, so
that micro-batches of any size and number weigh as the learner says. Its loss is averaged over ranks.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.config import Learner as LearnerConfig
from learner.optimizer import ClippedAdamW, adamw_options, build_schedule
from learner.ranks import join

TAG = "learner"

PERSISTENT_NUMEL = 100_000
"""Parameters up to this size stay whole on every rank under ZeRO-3 between steps: gathering them costs more."""


class DeepSpeedEngine:
    """Implements `common.protocols.TrainEngine`; every method is called by all ranks.

    Args:
        module: the policy, on the CPU.
        config: optimizer, schedule, ZeRO stage, ranks; `num_gpus` 0 means CPU.
        rank, world_size, master_address, master_port: where the ranks meet (not needed for a single one).

    Raises:
        UserError: the ranks do not meet in time.
    """

    def __init__(
        self,
        module: nn.Module,
        config: LearnerConfig,
        rank: int,
        world_size: int,
        master_address: str,
        master_port: int,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        _set_environment(config, rank, world_size)
        import deepspeed

        warnings.filterwarnings(
            "ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning
        )
        # This op only serves inference, and would compile C++ for a minute at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._deepspeed = deepspeed
        join(
            "nccl" if config.num_gpus else "gloo",
            rank,
            world_size,
            master_address,
            master_port,
        )
        self._config = config
        # Stage 0 steps bfloat16 weights through an older optimizer without a finiteness check; 1 is the same sum.
        self._stage = max(config.zero_stage, int(_is_bfloat16(module)))
        trainable = [
            parameter for parameter in module.parameters() if parameter.requires_grad
        ]
        # Fused is one pass over the state also on a CPU, where an offloaded step is: no compiled DeepSpeedCPUAdam.
        optimizer = (
            torch.optim.AdamW(
                trainable,
                fused=config.offload != "none",
                **adamw_options(config.optimizer),
            )
            if self._stage
            else ClippedAdamW(trainable, config.optimizer)
        )
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            model_parameters=trainable,
            lr_scheduler=lambda inner: build_schedule(
                inner, config.optimizer, config.num_steps
            ),
            config=_config(config, world_size, self._stage, _is_bfloat16(module)),
            dist_init_required=False,
        )
        self._frozen: Any = None

    @property
    def module(self) -> nn.Module:
        """What is called for the forward pass: DeepSpeed's wrapper around the policy."""
        return self._engine  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's share of the loss."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> Mapping[str, float]:
        """Reduce, clip, update, schedule, zero the gradients. Non-finite gradients: no update, `skipped` is 1."""
        lr = self._engine.get_lr()[0]
        self._engine.step()
        self._forget_gradients()
        norm = self._engine.get_global_grad_norm()
        skipped = not self._engine.was_step_applied()
        return {"grad_norm": float(norm), "lr": float(lr), "skipped": float(skipped)}

    def gather_weights(
        self, wanted: Callable[[str], bool] = lambda name: True
    ) -> Mapping[str, Tensor] | None:
        """Copies of the wanted parameters on rank 0's CPU, tied ones under each of their names.

        Under ZeRO-3 every rank holds one whole parameter at a time, and rank 0 the copies.
        """
        weights: dict[str, Tensor] = {}
        for name, parameter in self.gathered(self._engine.module, wanted):
            if self.rank == 0:
                weights[name] = parameter.to("cpu", copy=True)
        return weights if self.rank == 0 else None

    def place_frozen(self, module: nn.Module) -> nn.Module:
        """The module on the policy's device; under ZeRO-3 split over the ranks, and offloaded, as the policy is."""
        if self._stage < 3 or (
            self.world_size == 1 and self._config.offload != "params"
        ):
            return module.to(self._engine.device)
        config = _config(
            self._config, self.world_size, self._stage, _is_bfloat16(module)
        )
        self._frozen, *_ = self._deepspeed.initialize(
            model=module, config=config, dist_init_required=False
        )
        return self._frozen  # type: ignore[no-any-return]

    def gathered(
        self, module: nn.Module, wanted: Callable[[str], bool] = lambda name: True
    ) -> Iterator[tuple[str, Tensor]]:
        """Parameters by name, each whole on all ranks until the next is asked for; tied ones under each name."""
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if not wanted(name):
                continue
            with self._deepspeed.zero.GatheredParameters(
                parameter, enabled=hasattr(parameter, "ds_id")
            ):
                yield name, parameter.detach()

    def save(self, directory: Path) -> None:
        """DeepSpeed's checkpoint, without what is frozen."""
        self._engine.save_checkpoint(
            str(directory), tag=TAG, exclude_frozen_parameters=True
        )

    def load(self, directory: Path) -> None:
        """Go on from `save` (raises what DeepSpeed raises; the learner says it in one line)."""
        found, _ = self._engine.load_checkpoint(
            str(directory), tag=TAG, load_module_strict=False
        )
        if found is None:
            raise FileNotFoundError(
                f"no DeepSpeed checkpoint of {self.world_size} ranks in {directory}"
            )

    def _forget_gradients(self) -> None:
        """Zero the buffers that DeepSpeed writes at a parameter's first gradient of a step only.

        One that a step does not use (the projector, in a batch without images) would be moved by its last gradient.
        """
        optimizer = self._engine.optimizer
        buffers = [getattr(optimizer, "grad_partitions_flat_buffer", None)]
        for groups in (
            "fp32_partitioned_groups_flat",
            "single_partition_of_fp32_groups",
        ):
            buffers += [master.grad for master in getattr(optimizer, groups, ())]
        for buffer in buffers:
            if buffer is not None:
                buffer.zero_()

    def close(self) -> None:
        """Leave the process group (without this ZeRO-3 aborts at exit)."""
        self._engine.destroy()
        if self._frozen is not None:
            self._frozen.destroy()
        if dist.is_initialized():
            self._deepspeed.comm.destroy_process_group()


def _set_environment(config: LearnerConfig, rank: int, world_size: int) -> None:
    """What DeepSpeed reads when it is imported and initialised. Ray shows a GPU rank its own device only."""
    if config.num_gpus == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0")


def _is_bfloat16(module: nn.Module) -> bool:
    return next(module.parameters()).dtype == torch.bfloat16


def _config(
    config: LearnerConfig, world_size: int, stage: int, bfloat16: bool
) -> dict[str, Any]:
    return {
        "train_batch_size": config.micro_batch * world_size,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.optimizer.max_grad_norm if stage else 0.0,
        "zero_optimization": _zero(config, stage),
        "bf16": {"enabled": bfloat16, "check_grad_overflow": True},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


def _zero(config: LearnerConfig, stage: int) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = PERSISTENT_NUMEL
    pinned = {"device": "cpu", "pin_memory": config.num_gpus > 0}
    if config.offload != "none":
        zero["offload_optimizer"] = pinned
    if config.offload == "params":
        zero["offload_param"] = pinned
    return zero
