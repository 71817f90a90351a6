"""How the current policy is sampled."""

from __future__ import annotations

from pydantic import Field

from common.config.bdhs import BdhsConfig
from common.config.section import Gpus, Section, TextOnDisk


class EngineOptions(Section):
    """vLLM engine arguments that people tune."""

    max_num_seqs: int = Field(64, ge=1)
    kv_cache_bytes: int = Field(
        64 << 20, ge=0, le=1 << 50, description="0 leaves the size to vLLM (GPU)"
    )
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    tensor_parallel_size: int = Field(1, ge=1)
    block_size: int | None = Field(None, ge=1)
    enforce_eager: bool = True


class OnlineBdhs(BdhsConfig):
    """BDHS as an online source of pairs (`mixture.online_bdhs_fraction`); its draws follow `run.seed` as well."""

    similarity: TextOnDisk = Field(
        "lexical",
        description="lexical, or a sentence-transformers model by name or folder",
    )


class Rollout(Section):
    """Sampling from the current policy."""

    num_workers: int = Field(1, ge=1, description="engines, a process each")
    num_completions: int = Field(
        2, ge=2, description="k, completions per prompt (ours: the paper states none)"
    )
    temperature: float = Field(1.0, gt=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(96, ge=1, description="of one completion")
    prompts_per_call: int = Field(8, ge=1, description="groups per call of a worker")
    deterministic: bool = Field(
        False,
        description="equal seeds give equal completions: the engine runs step by step in the worker's process",
    )
    engine: EngineOptions = EngineOptions()
    bdhs: OnlineBdhs = OnlineBdhs()
    num_cpus: float = Field(1, ge=0)
    num_gpus: Gpus = 0
