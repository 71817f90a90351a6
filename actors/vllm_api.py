"""The only file that imports vLLM; it re-exports what the rooms use. vLLM reads its environment when it is imported."""

from __future__ import annotations

import gc
import os

# LLMEngine stays in this process; AsyncLLM has a process of its own in any case.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
# Workers share the cores by OMP_NUM_THREADS; vLLM would bind all of them to the first ones.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from typing import get_type_hints

from actors.engine.causes import LOGGING_CONFIG, logging_config

# What goes wrong in one of vLLM's processes is then known here.
os.environ[LOGGING_CONFIG] = logging_config()

# vLLM brings thousands of modules that stay; looking for garbage among them is a fifth of its import.
gc.disable()
import torch._dynamo
import vllm
from vllm import LLM, SamplingParams
from vllm.config.load import LoadConfig
from vllm.config.lora import MaxLoRARanks
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.lora.request import LoRARequest
from vllm.model_executor.model_loader import DefaultModelLoader, register_model_loader
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.models.llava import LlavaImageEmbeddingInputs
from vllm.model_executor.models.llava_next import LlavaNextImageEmbeddingInputs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.llm_engine import LLMEngine

gc.enable()

VERSION: str = vllm.__version__

# vLLM 0.32 checks that all image embeddings of one engine step are equally long, although its code does not need it.
# BDHS leaves out image tokens by chance, so they are not.
for _schema in (LlavaImageEmbeddingInputs, LlavaNextImageEmbeddingInputs):
    _data_type = get_type_hints(_schema, include_extras=True)["data"]
    _shape = _data_type.__metadata__[0]
    _shape.dynamic_dims.add("ifs")


def allow_compile(allowed: bool) -> None:
    """Let torch compile, or not, in this process and in those that it starts. Nothing is changed off the CPU.

    On a CPU the first compilation of the log-prob op alone takes seconds, in which an eager engine would not answer.
    """
    if not current_platform.is_cpu():
        return
    # torch reads it when it is imported, and vLLM when it makes its configuration.
    os.environ["TORCH_COMPILE_DISABLE"] = "0" if allowed else "1"
    # vLLM cannot start with this one and a model that is to be compiled.
    os.environ.pop("TORCHDYNAMO_DISABLE", None)
    torch._dynamo.config.disable = not allowed


__all__ = [
    "LLM",
    "VERSION",
    "AsyncEngineArgs",
    "AsyncLLM",
    "CompletionOutput",
    "DefaultModelLoader",
    "EngineArgs",
    "LLMEngine",
    "LoRARequest",
    "LoadConfig",
    "MaxLoRARanks",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "WeightTransferEngine",
    "WeightTransferEngineFactory",
    "WeightTransferInitInfo",
    "WeightTransferUpdateInfo",
    "allow_compile",
    "current_platform",
    "finalize_layerwise_reload",
    "get_layerwise_info",
    "initialize_layerwise_reload",
    "parse_model_prompt",
    "register_model_loader",
]
