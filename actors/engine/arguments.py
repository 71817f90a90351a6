"""The vLLM engine arguments of a configuration."""

from __future__ import annotations

from typing import Any

import torch

from actors.engine.requests import MAX_IMAGES
from actors.vllm_api import current_platform
from actors.weights.adapter_push import lora_arguments, pushed_adapter
from actors.weights.loader import load_arguments
from actors.weights.receiver import BACKEND, EXTENSION
from common.chat import ChatEncoder
from common.checkpoint.layout import empty_model
from common.config import Model, Rollout
from common.errors import UserError


def engine_arguments(
    model: Model, rollout: Rollout, encoder: ChatEncoder, seed: int
) -> dict[str, Any]:
    """vLLM engine arguments.

    Raises:
        UserError: the CUDA build of vLLM has no GPU, or vLLM takes no adapter of this rank.
    """
    options = rollout.engine
    media_limits = {"image": MAX_IMAGES}
    if _has_video(encoder):
        media_limits["video"] = 0
    arguments: dict[str, Any] = {
        "model": str(model.path),
        "dtype": model.dtype,
        "seed": seed,
        # One position more than max_length, so that a sequence of full length can be scored.
        "max_model_len": model.max_length + 1,
        "max_num_seqs": options.max_num_seqs,
        "tensor_parallel_size": options.tensor_parallel_size,
        "enforce_eager": options.enforce_eager,
        # Without this, the sampling defaults of the model directory apply.
        "generation_config": "vllm",
        "limit_mm_per_prompt": media_limits,
        "skip_mm_profiling": True,
        "mm_processor_cache_gb": 1,
        "enable_mm_embeds": True,
        "disable_log_stats": True,
        "weight_transfer_config": {"backend": BACKEND},
        "worker_extension_cls": EXTENSION,
        **load_arguments(model.path),
    }
    tuning = pushed_adapter(model)
    if tuning is not None:
        arguments |= lora_arguments(empty_model(model.path), tuning)
    if options.block_size is not None:
        arguments["block_size"] = options.block_size
    if options.kv_cache_bytes:
        arguments["kv_cache_memory_bytes"] = options.kv_cache_bytes
    if current_platform.is_cpu():
        # Room for every sequence at full length: a seeded request that is prefilled in parts crashes vLLM on CPU,
        # which cannot wind back a CPU generator ("CPU Generator does not use offset").
        arguments["max_num_batched_tokens"] = (
            options.max_num_seqs * arguments["max_model_len"]
        )
    else:
        if torch.cuda.device_count() == 0:
            raise UserError(
                f"rollout.num_gpus: expected a GPU for the CUDA build of vLLM, got none with num_gpus = "
                f"{rollout.num_gpus:g}; set rollout.num_gpus = 1, or install requirements/cpu.txt"
            )
        arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
    return arguments


def _has_video(encoder: ChatEncoder) -> bool:
    return getattr(encoder.config, "video_token_id", None) is not None
