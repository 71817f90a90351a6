"""How the current policy is sampled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from common.command_line.engine_arguments import check_extra
from common.config.bdhs import BdhsConfig
from common.config.section import FrozenTable, Gpus, Section, Table, TextOnDisk

BATCHED_TOKENS = 8192
"""Tokens of one engine step on a GPU. vLLM's default here, 2,048, would cut an AnyRes picture of 2,928 in two."""


class EngineOptions(Section):
    """vLLM engine arguments that people tune; `extra` takes all others."""

    max_num_seqs: int = Field(64, ge=1)
    max_num_batched_tokens: int | None = Field(
        None,
        ge=1,
        description=f"tokens of one engine step; none: {BATCHED_TOKENS:,}, or max_length where that is more, so that "
        "a prompt with its pictures takes one step (CPU: all max_num_seqs sequences at full length)",
    )
    kv_cache_bytes: int = Field(
        64 << 20, ge=0, le=1 << 50, description="0 leaves the size to vLLM (GPU)"
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"] = Field(
        "auto", description="of keys and values in the cache; auto: the model's"
    )
    enable_prefix_caching: bool = Field(
        True, description="compute what prompts have in common once"
    )
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    tensor_parallel_size: int = Field(
        1, ge=1, description="GPUs that an engine is split over; num_gpus is the same"
    )
    block_size: int | None = Field(None, ge=1)
    enforce_eager: bool = Field(
        True, description="false: torch.compile and, on a GPU, CUDA graphs"
    )
    extra: Table = Field(
        FrozenTable(),
        description="any other vLLM engine argument by its name, such as extra.mm_processor_cache_gb",
    )

    @field_validator("extra")
    @classmethod
    def _takes_arguments(cls, extra: FrozenTable) -> FrozenTable:
        check_extra(extra)
        return extra

    @model_validator(mode="after")
    def _step_holds_sequences(self) -> EngineOptions:
        tokens = self.max_num_batched_tokens
        if tokens is not None and tokens < self.max_num_seqs:
            raise ValueError(
                f"expected max_num_batched_tokens of at least max_num_seqs, got {tokens} and {self.max_num_seqs}; "
                "raise it, or lower max_num_seqs"
            )
        return self

    def tokens_per_step(self, max_length: int, on_gpu: bool) -> int:
        """Tokens of one engine step at most."""
        if self.max_num_batched_tokens is not None:
            return self.max_num_batched_tokens
        if on_gpu:
            return max(BATCHED_TOKENS, max_length, self.max_num_seqs)
        # A seeded request that is prefilled in parts crashes vLLM on CPU, which cannot wind back a CPU generator
        # ("CPU Generator does not use offset").
        return self.max_num_seqs * max_length

    def check_gpus(self, num_gpus: float) -> None:
        """Raise ValueError where an engine of so many GPUs would use fewer, or more."""
        split = self.tensor_parallel_size
        wastes = num_gpus > 1 and num_gpus != split
        lacks = split > 1 and 0 < num_gpus < split
        if wastes or lacks:
            raise ValueError(
                f"expected num_gpus = engine.tensor_parallel_size, a GPU for every part, got {num_gpus:g} and {split}; "
                "make them equal"
            )


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
    max_completions: int | None = Field(
        None,
        ge=2,
        description="a group that ties though its answers differ is sampled on, num_completions at a time, up to so "
        "many (ours); none: it is dropped at once",
    )
    temperature: float = Field(1.0, gt=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(96, ge=1, description="of one completion")
    prompts_per_call: int = Field(8, ge=1, description="groups per call of a worker")
    deterministic: bool = Field(
        False,
        description="equal seeds give equal completions: the engine runs step by step in the worker's process",
    )
    draw: Literal["epochs", "by_worth"] = Field(
        "epochs",
        description="which prompt comes next. epochs: every one once, then all again in another order; by_worth: more "
        "often those whose completions the judge can tell apart (ours)",
    )
    draw_power: float = Field(
        3,
        ge=0,
        le=10,
        description="by_worth: a prompt comes in proportion to this power of its chance to teach; 0: all alike",
    )
    engine: EngineOptions = EngineOptions()
    bdhs: OnlineBdhs = OnlineBdhs()
    num_cpus: float = Field(1, ge=0)
    num_gpus: Gpus = 0

    @model_validator(mode="after")
    def _one_gpu_a_part(self) -> Rollout:
        self.engine.check_gpus(self.num_gpus)
        return self

    @model_validator(mode="after")
    def _may_sample_on(self) -> Rollout:
        most = self.max_completions
        if most is not None and most < self.num_completions:
            raise ValueError(
                f"expected max_completions of at least num_completions, got {most} and {self.num_completions}; "
                "raise it, or leave it out"
            )
        return self
