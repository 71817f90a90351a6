"""The training engine on DeepSpeed: ZeRO 0-3, any number of ranks, CPU (gloo) or GPU (nccl). Only file that imports it.

DeepSpeed runs with `managed_gradient_accumulation: false`: `backward` only accumulates, `step` is the boundary, so
that micro-batches of any size and number weigh as the learner says. Its loss is averaged over ranks.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.config import Learner as LearnerConfig
from common.errors import UserError
from learner.optimizer import ClippedAdamW, adamw_options, build_schedule

TAG = "learner"
TIMEOUT = timedelta(minutes=10)


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

        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        # This op only serves inference, and would compile C++ for a minute at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._deepspeed = deepspeed
        _join(config, rank, world_size, master_address, master_port)
        bfloat16 = next(module.parameters()).dtype == torch.bfloat16
        # Stage 0 steps bfloat16 weights through an older optimizer without a finiteness check; 1 is the same sum.
        self._stage = max(config.zero_stage, int(bfloat16))
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = (
            torch.optim.AdamW(trainable, **adamw_options(config.optimizer))
            if self._stage
            else ClippedAdamW(trainable, config.optimizer)
        )
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            model_parameters=trainable,
            lr_scheduler=lambda inner: build_schedule(inner, config.optimizer, config.num_steps),
            config=_config(config, world_size, self._stage, bfloat16),
            dist_init_required=False,
        )

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
        norm = self._engine.get_global_grad_norm()
        skipped = not self._engine.was_step_applied()
        return {"grad_norm": float(norm), "lr": float(lr), "skipped": float(skipped)}

    def gather_weights(self, wanted: Callable[[str], bool] = lambda name: True) -> Mapping[str, Tensor] | None:
        """Copies of all parameters on rank 0's CPU, one by one; tied ones under each of their names."""
        weights: dict[str, Tensor] = {}
        for name, parameter in self._engine.module.named_parameters(remove_duplicate=False):
            if not wanted(name):
                continue
            with self._gathered(parameter):
                if self.rank == 0:
                    weights[name] = parameter.detach().to("cpu", copy=True)
        return weights if self.rank == 0 else None

    def save(self, directory: Path) -> None:
        """DeepSpeed's checkpoint, without what is frozen."""
        self._engine.save_checkpoint(str(directory), tag=TAG, exclude_frozen_parameters=True)

    def load(self, directory: Path) -> None:
        """Go on from `save` (raises what DeepSpeed raises; the learner says it in one line)."""
        found, _ = self._engine.load_checkpoint(str(directory), tag=TAG, load_module_strict=False)
        if found is None:
            raise FileNotFoundError(f"no DeepSpeed checkpoint of {self.world_size} ranks in {directory}")

    def close(self) -> None:
        """Leave the process group (without this ZeRO-3 aborts at exit)."""
        self._engine.destroy()
        if dist.is_initialized():
            self._deepspeed.comm.destroy_process_group()

    def _gathered(self, parameter: nn.Parameter) -> Any:
        return self._deepspeed.zero.GatheredParameters(parameter, enabled=self._stage == 3)


def _set_environment(config: LearnerConfig, rank: int, world_size: int) -> None:
    """What DeepSpeed reads when it is imported and initialised. Ray shows a GPU rank its own device only."""
    if config.num_gpus == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0")


def _join(config: LearnerConfig, rank: int, world_size: int, address: str, port: int) -> None:
    if dist.is_initialized():
        raise RuntimeError("this process already belongs to a process group; close the other engine first")
    backend = "nccl" if config.num_gpus else "gloo"
    try:
        store = (
            dist.HashStore()  # type: ignore[attr-defined]
            if world_size == 1
            else dist.TCPStore(  # type: ignore[attr-defined]
                address, port, world_size, is_master=rank == 0, timeout=TIMEOUT
            )
        )
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"learner rank {rank}: expected {world_size} ranks to meet at {address}:{port}, got: {error}; "
            "check that the address can be reached and the port is free"
        ) from error


def _config(config: LearnerConfig, world_size: int, stage: int, bfloat16: bool) -> dict[str, Any]:
    return {
        "train_batch_size": config.micro_batch * world_size,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.optimizer.max_grad_norm if stage else 0.0,
        "zero_optimization": {"stage": stage, "overlap_comm": False},
        "bf16": {"enabled": bfloat16, "check_grad_overflow": True},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
