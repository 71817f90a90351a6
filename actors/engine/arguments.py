"""The vLLM engine arguments of a configuration."""

from __future__ import annotations

from typing import Any

import torch

from actors.vllm_api import current_platform
from actors.weights.adapter_push import lora_arguments, pushed_adapter
from actors.weights.loader import load_arguments
from actors.weights.receiver import BACKEND, EXTENSION
from common.chat import ChatEncoder
from common.chat.families import check_cpu_engines
from common.checkpoint.layout import empty_model
from common.config import EngineOptions, Model, Rollout
from common.errors import UserError
from common.push.adapter import check_adapter


def engine_arguments(
    model: Model, rollout: Rollout, encoder: ChatEncoder, seed: int
) -> dict[str, Any]:
    """vLLM engine arguments.

    Raises:
        UserError: the CUDA build of vLLM has no GPU, the CPU build does not run the family as it is, or vLLM takes no
            adapter of this rank.
    """
    options = rollout.engine
    on_gpu = not current_platform.is_cpu()
    _check_devices(rollout, on_gpu)
    if not on_gpu:
        check_cpu_engines(encoder, model)
    media_limits = {"image": encoder.max_images}
    if _has_video(encoder):
        media_limits["video"] = 0
    arguments: dict[str, Any] = {
        "model": str(model.path),
        "dtype": model.dtype,
        "seed": seed,
        # A sequence of full length is scored without a position for a token after it: see `scoring_params`.
        "max_model_len": model.max_length,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": _tokens_per_step(model, options, on_gpu),
        "tensor_parallel_size": options.tensor_parallel_size,
        "enforce_eager": options.enforce_eager,
        "enable_prefix_caching": options.enable_prefix_caching,
        "kv_cache_dtype": options.kv_cache_dtype,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        # Without this, the sampling defaults of the model directory apply.
        "generation_config": "vllm",
        "limit_mm_per_prompt": media_limits,
        "mm_processor_kwargs": encoder.picture_sizes.arguments or None,
        "skip_mm_profiling": True,
        "mm_processor_cache_gb": 1,
        "enable_mm_embeds": True,
        "disable_log_stats": True,
        "weight_transfer_config": {"backend": BACKEND},
        "worker_extension_cls": EXTENSION,
        **load_arguments(model.path),
    }
    if options.tensor_parallel_size > 1:
        # In a placement group vLLM would take Ray's, which wants a bundle for every GPU: ours holds all of an engine.
        arguments["distributed_executor_backend"] = "mp"
    tuning = pushed_adapter(model, rollout)
    if tuning is not None:
        check_adapter(model, rollout)
        arguments |= lora_arguments(empty_model(model.path), tuning)
    if options.block_size is not None:
        arguments["block_size"] = options.block_size
    if options.kv_cache_bytes:
        arguments["kv_cache_memory_bytes"] = options.kv_cache_bytes
    return arguments | options.extra


def _check_devices(rollout: Rollout, on_gpu: bool) -> None:
    """Refuse (UserError) the CUDA build of vLLM with fewer GPUs than an engine has parts."""
    if not on_gpu:
        return
    needed = rollout.engine.tensor_parallel_size
    visible = torch.cuda.device_count()
    if visible < needed:
        expected = "a GPU" if needed == 1 else f"{needed} GPUs"
        raise UserError(
            f"rollout.num_gpus: expected {expected} for the CUDA build of vLLM, got {visible or 'none'} with num_gpus "
            f"= {rollout.num_gpus:g}; set rollout.num_gpus = {needed}, or install requirements/cpu.txt"
        )


def _tokens_per_step(model: Model, options: EngineOptions, on_gpu: bool) -> int:
    tokens = options.tokens_per_step(model.max_length, on_gpu)
    needed = options.max_num_seqs * model.max_length
    if not on_gpu and tokens < needed:
        raise UserError(
            f"engine.max_num_batched_tokens: expected at least {needed} on a CPU (max_num_seqs times max_length), "
            f"where vLLM cannot prefill in parts, got {tokens}; leave it out"
        )
    return tokens


def _has_video(encoder: ChatEncoder) -> bool:
    return getattr(encoder.config, "video_token_id", None) is not None
