"""How the policy is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from common.config.losses import DEFAULT_KIND, AnyLoss, Loss, Sigmoid, inherited
from common.config.section import Fraction, Gpus, Section, TextOnDisk, by_kind


class Optimizer(Section):
    """AdamW with linear warm-up, then the schedule."""

    lr: float = Field(1e-6, ge=1e-12, le=1)
    weight_decay: float = Field(0.0, ge=0, le=1)
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    warmup_steps: int = Field(10, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    max_grad_norm: float = Field(1.0, gt=0)


class Fast(Section):
    """Switches of the learner's fast paths. They change time and memory, not the result.

    A path that the model or machine does not support falls back to the plain one, and the run says why.
    """

    share_prompt: bool = Field(
        True,
        description="run the prompt of a pair once for both completions, without padding",
    )
    share_vision: bool = Field(
        True,
        description="run the frozen parts of the vision side once for policy and reference",
    )
    vision_cache_mb: int = Field(
        256, ge=0, description="MiB of image features that are kept across steps"
    )
    fused_logps: bool = Field(
        True, description="compute head and log softmax in one, gradients included"
    )
    fused_layers: bool = Field(
        True,
        description="decoder layers with fewer passes over memory, the last one only where tokens are predicted",
    )
    onednn: bool = Field(
        True,
        description="float32 linear layers by oneDNN, not MKL, on CPUs with AVX-512 that are not Intel's",
    )
    pack_tokens: int = Field(
        0,
        ge=0,
        description="tokens per forward; 0: learner.micro_batch pairs per forward",
    )
    reference_cache: TextOnDisk = Field(
        "run",
        description="where reference log-probs of offline pairs are kept: run (in its folder), off, or a folder",
    )


def _num_workers(value: Any, info: ValidationInfo) -> Any:
    if value != "auto":
        return value
    # On a CPU the step has all cores already.
    return 2 if info.data.get("num_gpus") else 0


Workers = Annotated[int, BeforeValidator(_num_workers)]
"""A number of processes, or `auto`: by the section's `num_gpus`, declared before it."""


LossConfig = Annotated[AnyLoss, by_kind(DEFAULT_KIND)]


class Learner(Section):
    """The training side."""

    engine: Literal["deepspeed", "torch"] = "deepspeed"
    num_steps: int = Field(100, ge=1)
    global_batch: int = Field(
        32, ge=1, description="pairs per optimizer step, over all ranks"
    )
    micro_batch: int = Field(8, ge=1, description="pairs per forward and rank")
    num_ranks: int = Field(1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "params"] = Field(
        "none",
        description="to CPU memory: optimizer state and its step (ZeRO 1-3); params as well (ZeRO-3)",
    )
    gradient_checkpointing: bool = False
    max_skipped_steps: int = Field(
        5,
        ge=1,
        description="steps in a row that are skipped, for a loss or gradient that is not finite or for want of a "
        "usable pair, before the run stops",
    )
    grounding_pairs: int = Field(
        16,
        ge=0,
        description="pairs of the batch that a checkpoint's grounding gate looks at; 0: none",
    )
    fast: Fast = Fast()
    loss: LossConfig = Sigmoid()
    source_losses: dict[str, LossConfig] = Field(
        {}, description="by PreferencePair.source"
    )
    optimizer: Optimizer = Optimizer()
    num_cpus: float = Field(1, ge=0)
    num_gpus: Gpus = 0
    input_workers: Workers = Field(
        "auto",
        ge=0,
        le=64,
        validate_default=True,
        description="processes per rank that read and resize the next step's pictures meanwhile, on processors that "
        "num_cpus reserves; 0: the step does it; auto: 2 for a rank on a GPU, else 0",
    )

    def loss_of(self, source: str) -> Loss:
        """The loss of a source's pairs."""
        return self.source_losses.get(source, self.loss)

    @property
    def losses(self) -> tuple[Loss, ...]:
        """All losses that a run may meet."""
        return (self.loss, *self.source_losses.values())

    def weight_of(self, source: str) -> float:
        """The weight of each of a source's pairs in the batch's mean."""
        return self.loss_of(source).weight

    @model_validator(mode="before")
    @classmethod
    def _sources_inherit(cls, values: Any) -> Any:
        """Complete each source's settings by those of `loss`, so that the resolved config says all of it."""
        if not isinstance(values, dict):
            return values
        sources = values.get("source_losses")
        run = values.get("loss", {})
        if isinstance(run, Loss):
            run = run.model_dump()
        if not isinstance(sources, dict) or not isinstance(run, dict):
            # The validation of the fields explains what is wrong.
            return values
        completed = {}
        for source, loss in sources.items():
            completed[source] = loss
            if isinstance(loss, dict):
                completed[source] = inherited(run, loss)
        return values | {"source_losses": completed}

    @model_validator(mode="after")
    def _weights_are_of_sources(self) -> Learner:
        if self.loss.weight != 1:
            raise ValueError(
                f"learner.loss.weight is the weight of one source against the others, got {self.loss.weight} for all; "
                "set learner.source_losses.NAME.weight"
            )
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> Learner:
        if self.global_batch % self.num_ranks:
            raise ValueError(
                f"learner.global_batch must be a multiple of learner.num_ranks, got {self.global_batch} and "
                f"{self.num_ranks}; change one of them"
            )
        return self

    @model_validator(mode="after")
    def _offload_has_a_partition(self) -> Learner:
        # ZeRO can move only what it partitions.
        least = {"none": 0, "optimizer": 1, "params": 3}[self.offload]
        if self.zero_stage < least or (least and self.engine != "deepspeed"):
            raise ValueError(
                f"learner.offload = {self.offload} expects learner.engine = deepspeed and learner.zero_stage >= "
                f"{least}, got {self.engine} and {self.zero_stage}; raise the stage, or set learner.offload = none"
            )
        return self
