"""The training engine on DeepSpeed: ZeRO 0-3, any number of ranks, CPU (gloo) or GPU (nccl).

DeepSpeed runs with `managed_gradient_accumulation: false`: `backward` only adds gradients up and `step` ends the batch,
so that micro-batches of any size and number weigh as the learner says. Gradients are averaged over ranks.
No other file imports deepspeed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from common.config import Learner as LearnerConfig
from common.protocols import Slot
from learner.engines.optimizer import ClippedAdamW, adamw_options, build_schedule
from learner.engines.ranks import join
from learner.engines.slots import cut_slots, flat_slots, shapes_of, whole_slots

PERSISTENT_NUMEL = 100_000
"""Under ZeRO-3, smaller parameters stay whole on every rank: gathering them costs more than keeping them."""


class DeepSpeedEngine:
    """Implements `common.protocols.TrainEngine`; every method is called by all ranks.

    Args:
        module: the policy; under ZeRO-3 its parameters may be split up already, by a `Splitter`.
        config: optimizer, schedule, ZeRO stage, ranks; `num_gpus` 0 means CPU.
        rank, world_size: which of how many; `join_ranks` comes first.
    """

    def __init__(
        self,
        module: nn.Module,
        config: LearnerConfig,
        rank: int,
        world_size: int,
    ) -> None:
        import deepspeed

        self.rank = rank
        self.world_size = world_size
        self._deepspeed = deepspeed
        self._config = config
        # Stage 0 steps bfloat16 weights through an older optimizer without a finiteness check; stage 1 computes the
        # same sum with one.
        self._stage = max(config.zero_stage, int(_is_bfloat16(module)))
        trainable = [weight for weight in module.parameters() if weight.requires_grad]
        self._mark_experts(module)

        def schedule(optimizer: torch.optim.Optimizer) -> LambdaLR:
            return build_schedule(optimizer, config.optimizer, config.num_steps)

        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=_optimizer(trainable, config, self._stage),
            model_parameters=trainable,
            lr_scheduler=schedule,
            config=_config(config, world_size, self._stage, _is_bfloat16(module)),
            dist_init_required=False,
        )
        # A second DeepSpeed engine, around the reference; see `place_frozen`.
        self._frozen: Any = None

    @property
    def module(self) -> nn.Module:
        """The module to call for the forward pass: DeepSpeed's wrapper around the policy."""
        return self._engine  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's share of the loss."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> Mapping[str, float]:
        """Reduce, clip, update, schedule, zero the gradients. Non-finite gradients: no update, `skipped` is 1."""
        # Read before the step, which moves the schedule on.
        lr = self._engine.get_lr()[0]
        self._engine.step()
        self._forget_gradients()
        norm = self._engine.get_global_grad_norm()
        skipped = not self._engine.was_step_applied()
        return {
            "grad_norm": float(norm),
            "lr": float(lr),
            "skipped": float(skipped),
        }

    def gather_weights(
        self,
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> Mapping[str, Tensor] | None:
        """Copies of the wanted parameters on rank 0's CPU, tied ones under each of their names; None on other ranks.

        Under ZeRO-3 every rank holds one whole parameter at a time, and rank 0 the copies.
        """
        weights: dict[str, Tensor] = {}
        for name, parameter in self.gathered(self._engine.module, wanted):
            if self.rank == 0:
                weights[name] = parameter.to("cpu", copy=True)
        return weights if self.rank == 0 else None

    def place_frozen(self, module: nn.Module) -> nn.Module:
        """The module on the policy's device; under ZeRO-3 split over the ranks, and offloaded, as the policy is."""
        if not splits_reference(self._config, self.world_size):
            return module.to(self._engine.device)
        bfloat16 = _is_bfloat16(module)
        self._mark_experts(module)
        self._frozen, *_ = self._deepspeed.initialize(
            model=module,
            config=_config(self._config, self.world_size, self._stage, bfloat16),
            dist_init_required=False,
        )
        return self._frozen  # type: ignore[no-any-return]

    def gathered(
        self,
        module: nn.Module,
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> Iterator[tuple[str, Tensor]]:
        """The wanted parameters by name, tied ones under each of their names.

        Each is whole, on all ranks, until the next is asked for.
        """
        gather = self._deepspeed.zero.GatheredParameters
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if not wanted(name):
                continue
            # ZeRO-3 marks the parameters that it has split.
            with gather(parameter, enabled=hasattr(parameter, "ds_id")):
                yield name, parameter.detach()

    @contextmanager
    def whole(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """All of these parameters are whole, on all ranks, as long as this lasts; gathered in one exchange."""
        # ZeRO-3 marks the parameters that it has split.
        split = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
        gather = self._deepspeed.zero.GatheredParameters
        with gather(split, enabled=bool(split)):
            yield

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """torch's optimizer, around which DeepSpeed's from ZeRO-1 on is."""
        optimizer = self._engine.optimizer
        return optimizer if self._stage == 0 else optimizer.optimizer  # type: ignore[no-any-return]

    @property
    def schedule(self) -> LambdaLR:
        """Counts applied updates."""
        return self._engine.lr_scheduler  # type: ignore[no-any-return]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all trained parameters by name."""
        return shapes_of(self._engine.module)

    def slots(self) -> list[Slot]:
        """What this rank keeps of the optimizer's state."""
        module = self._engine.module
        if self._stage == 0:
            return whole_slots(module)
        if self._stage < 3:
            return flat_slots(module, self._engine.optimizer)
        return cut_slots(module, self._engine.optimizer, self.rank)

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """While it lasts the slots are filled; afterwards the module has the weights of the masters (collective)."""
        zero = self._engine.optimizer
        if self._stage == 3:
            # Small parameters are whole on all ranks: only their pieces are filled.
            zero.checkpoint_event_prologue()
        yield
        if self._stage == 3:
            for group in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(group)
            zero.checkpoint_event_epilogue()
        elif self._stage > 0:
            zero.update_lp_params()

    def _mark_experts(self, module: nn.Module) -> None:
        """Let ZeRO-3 gather a mixture of experts as one: which of them are run differs from step to step."""
        blocks = expert_blocks(module)
        if self._stage == 3 and blocks:
            self._deepspeed.utils.set_z3_leaf_modules(module, blocks)

    def _forget_gradients(self) -> None:
        """Zero DeepSpeed's gradient buffers, which it overwrites only at a parameter's first gradient of a step.

        A parameter that a step does not use (the projector, in a batch without images) would else be moved by the
        gradient of an earlier step.
        """
        optimizer = self._engine.optimizer
        # Gradients of ZeRO-3.
        buffers = [getattr(optimizer, "grad_partitions_flat_buffer", None)]
        # Master weights of ZeRO-3, then of ZeRO-1 and 2: they may hold gradients.
        buffers += _gradients_of(optimizer, "fp32_partitioned_groups_flat")
        buffers += _gradients_of(optimizer, "single_partition_of_fp32_groups")
        for buffer in buffers:
            if buffer is not None:
                buffer.zero_()

    def close(self) -> None:
        """Leave the process group; without this ZeRO-3 aborts at exit."""
        self._engine.destroy()
        if self._frozen is not None:
            self._frozen.destroy()
        if dist.is_initialized():
            self._deepspeed.comm.destroy_process_group()


class Splitter:
    """Splits a parameter up over the ranks as ZeRO-3 does; this rank keeps its share (collective).

    It is a `learner.model.streaming.Place`: parameters that come one after the other are never whole together.
    """

    def __init__(self, config: LearnerConfig, world_size: int, bfloat16: bool) -> None:
        import deepspeed

        # DeepSpeed makes its settings part of the first parameters that it splits, and those can split others.
        self._first: Any = nn.Parameter(torch.zeros(1))
        if bfloat16:
            self._first.data = self._first.data.bfloat16()
        deepspeed.init_distributed(_backend(config), dist_init_required=False)
        deepspeed.zero.Init(
            module=nn.ParameterList([self._first]),
            config_dict_or_path=_config(config, world_size, 3, bfloat16),
        )

    def __call__(self, parameter: nn.Parameter) -> None:
        self._first.convert_to_zero_parameters(param_list=[parameter])


def join_ranks(
    config: LearnerConfig,
    rank: int,
    world_size: int,
    master_address: str,
    master_port: int,
) -> None:
    """Import DeepSpeed in the environment that it reads, and let the ranks meet.

    Raises:
        UserError: the ranks do not meet in time.
    """
    _set_environment(config, rank, world_size)
    import deepspeed

    warnings.filterwarnings(
        "ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning
    )
    # This op only serves inference, and would compile C++ for a minute at the first start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    join(_backend(config), rank, world_size, master_address, master_port)


def splits_reference(config: LearnerConfig, world_size: int) -> bool:
    """Whether a frozen model is split up over the ranks; on a single one that would only cost time."""
    return config.zero_stage == 3 and (world_size > 1 or config.offload == "params")


def _backend(config: LearnerConfig) -> str:
    return "nccl" if config.num_gpus else "gloo"


def overlaps(stage: int) -> bool:
    """Whether gradients are reduced while the backward pass goes on."""
    return stage == 2


def _set_environment(
    config: LearnerConfig,
    rank: int,
    world_size: int,
) -> None:
    """Set the variables that DeepSpeed reads when it is imported and initialised."""
    if config.num_gpus == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    else:
        # Rows differ in length from step to step: blocks of one size would not be used again for another. torch reads
        # it when it first takes memory of the GPU.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # Ray shows a GPU rank its own device only, so that it is number 0 for every rank.
    os.environ["LOCAL_RANK"] = "0"
    os.environ["RANK"] = str(rank)
    os.environ["WORLD_SIZE"] = str(world_size)


def expert_blocks(module: nn.Module) -> list[type[nn.Module]]:
    """Classes of the modules that choose among experts, as transformers builds them."""
    classes: list[type[nn.Module]] = []
    for part in module.modules():
        is_block = isinstance(getattr(part, "experts", None), nn.Module)
        if is_block and type(part) not in classes:
            classes.append(type(part))
    return classes


def _is_bfloat16(module: nn.Module) -> bool:
    first = next(module.parameters())
    return first.dtype == torch.bfloat16


def _gradients_of(optimizer: Any, name: str) -> list[Tensor | None]:
    """Gradients of the weights in a list of DeepSpeed's optimizer, which has the list in some stages only."""
    weights = getattr(optimizer, name, ())
    return [weight.grad for weight in weights]


def _optimizer(
    trainable: list[nn.Parameter],
    config: LearnerConfig,
    stage: int,
) -> torch.optim.Optimizer:
    """AdamW for DeepSpeed to step: from ZeRO-1 on it clips and checks gradients itself."""
    if stage == 0:
        return ClippedAdamW(trainable, config.optimizer)
    # Fused is one pass over the state and needs no temporary as large as a moment, on a GPU and on a CPU alike; with an
    # offloaded step it makes DeepSpeedCPUAdam needless, which is compiled at the first start.
    return torch.optim.AdamW(trainable, fused=True, **adamw_options(config.optimizer))


def _config(
    config: LearnerConfig,
    world_size: int,
    stage: int,
    bfloat16: bool,
) -> dict[str, Any]:
    """DeepSpeed's configuration."""
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
    """The section `zero_optimization` of DeepSpeed's configuration."""
    # Gradients of one bucket travel while the next is filled; two buckets are held then.
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": overlaps(stage)}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = PERSISTENT_NUMEL
    pinned = {"device": "cpu", "pin_memory": config.num_gpus > 0}
    if config.offload != "none":
        zero["offload_optimizer"] = pinned
    if config.offload == "params":
        zero["offload_param"] = pinned
    return zero
