"""The configuration of a run: one pydantic tree whose defaults are the vetted setting.

A preset is a TOML file of these fields; `--section.key value` overrides one of them (see `common/overrides.py`).
Fields whose value the papers do not state say so ("ours").
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

SHAPES_POLICY = "common/shapes/policy"


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def by_kind(default: str) -> Discriminator:
    """Picks a member of a union of sections by its `kind`, so that `--model.tuning.r 8` alone is an error about r."""

    def kind_of(value: Any) -> Any:
        return value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", None)

    return Discriminator(kind_of)


class Full(Section):
    """Train every parameter (of the parts that are not frozen)."""

    kind: Literal["full"] = "full"


class Lora(Section):
    """Low-rank adapters by peft. r and alpha as in both papers."""

    kind: Literal["lora"] = "lora"
    r: int = Field(128, ge=1)
    alpha: int = Field(256, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


Tuning = Annotated[Annotated[Full, Tag("full")] | Annotated[Lora, Tag("lora")], by_kind("full")]


class Model(Section):
    """The start policy, a Hugging Face directory, and what of it is trained."""

    path: str = SHAPES_POLICY
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_length: int = Field(512, ge=16, description="tokens of prompt + response; longer ones are refused and counted")
    tuning: Tuning = Full()
    freeze_vision: bool = Field(True, description="freeze the vision tower; the projector stays trainable")


class ShapesPrompts(Section):
    """Caption prompts on rendered scenes."""

    kind: Literal["shapes"] = "shapes"
    count: int = Field(2000, ge=1)
    seed: int = 0


class PromptFile(Section):
    """Prompts from a data set on disk (`prompts.parquet` beside an `images/` folder)."""

    kind: Literal["file"] = "file"
    path: str


class PairFile(Section):
    """An offline pair set (`pairs.parquet` beside an `images/` folder), as `cluster.generate` writes it."""

    path: str


PromptSource = Annotated[
    Annotated[ShapesPrompts, Tag("shapes")] | Annotated[PromptFile, Tag("file")], by_kind("shapes")
]


class Data(Section):
    """Where prompts and offline pairs come from. Validation picks the checkpoint, test is only reported."""

    prompts: PromptSource = ShapesPrompts()
    offline: PairFile | None = None


class EngineOptions(Section):
    """vLLM engine arguments that people tune."""

    max_num_seqs: int = Field(64, ge=1)
    kv_cache_bytes: int = Field(64 << 20, ge=0, description="0 leaves the size to vLLM (GPU)")
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    tensor_parallel_size: int = Field(1, ge=1)
    block_size: int | None = None
    enforce_eager: bool = True


class Rollout(Section):
    """Sampling from the current policy. k is not stated by the paper (ours)."""

    num_workers: int = Field(1, ge=1)
    num_completions: int = Field(4, ge=2, description="k completions per prompt")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(96, ge=1)
    prompts_per_call: int = Field(8, ge=1, description="groups per call of a worker")
    deterministic: bool = Field(False, description="in-process engine stepped by the worker, seeded per prompt")
    engine: EngineOptions = EngineOptions()
    num_cpus: float = 1
    num_gpus: float = 0


class RulesJudge(Section):
    """The shapes world's rule-based judge: what the caption says against what the scene holds."""

    kind: Literal["rules"] = "rules"
    hallucination_cost: float = Field(1.0, ge=0)
    attribute_cost: float = Field(0.5, ge=0)
    miss_cost: float = Field(0.5, ge=0)


JudgeConfig = RulesJudge
"""Becomes a union discriminated by `kind` with the second judge."""


class Reward(Section):
    """Judging and pairing: best against worst; pairs closer than `min_margin` are ties."""

    judge: JudgeConfig = RulesJudge()
    num_workers: int = Field(1, ge=1)
    min_margin: float = Field(1e-6, ge=0)
    max_retries: int = Field(2, ge=0)
    num_cpus: float = 0


class Loss(Section):
    """The preference loss. `beta` is DPO's 0.1 by default; the papers searched 0.05-0.5 (ipo 0.8-1, hinge 0.02-0.2)."""

    kind: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    beta: float = Field(0.1, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    nll_weight: float = Field(0.0, ge=0, description="weight of the NLL of the chosen side, per token")


class Optimizer(Section):
    """AdamW with linear warm-up, then the schedule."""

    lr: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = Field(10, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    max_grad_norm: float = Field(1.0, gt=0)


class Learner(Section):
    """The training side. global_batch = pairs per optimizer update over all ranks."""

    engine: Literal["deepspeed", "torch"] = "deepspeed"
    num_steps: int = Field(100, ge=1)
    global_batch: int = Field(32, ge=1)
    micro_batch: int = Field(8, ge=1, description="pairs per forward and rank")
    num_ranks: int = Field(1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 0
    gradient_checkpointing: bool = False
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    num_cpus: float = 1
    num_gpus: float = 0

    @model_validator(mode="after")
    def _batches_divide(self) -> Learner:
        if self.global_batch % self.num_ranks:
            raise ValueError(
                f"learner.global_batch must be a multiple of learner.num_ranks, got {self.global_batch} and "
                f"{self.num_ranks}; change one of them"
            )
        return self


class Mixture(Section):
    """Offline and online pairs in one batch. `bernoulli` with 0.5 is Mixed-DPO (arXiv 2407.02477, Eq. 4)."""

    kind: Literal["bernoulli", "ratio"] = "bernoulli"
    online_fraction: float = Field(0.5, ge=0, le=1, description="1 = online DPO, 0 = offline DPO")


class Loop(Section):
    """How far rollouts may run ahead of the learner. max_staleness 0 is strictly on-policy."""

    max_staleness: int = Field(1, ge=0)
    publish_interval: int = Field(1, ge=1, description="learner steps per published weight version")
    heartbeat_s: float = Field(30.0, gt=0)
    stall_limit_s: float = Field(600.0, gt=0, description="stop with the drop histogram if no batch forms for so long")
    call_timeout_s: float = Field(600.0, gt=0, description="limit of any one remote call")
    probe_tolerance: float = Field(1e-3, gt=0, description="max |Δ token log-prob| between learner and engine")


class Checkpoint(Section):
    """Every `interval` steps: state for --resume, and a look at the validation scenes."""

    interval: int = Field(25, ge=1)
    keep: int = Field(2, ge=1)


class Evaluation(Section):
    """Scorecard sizes, in scenes. Test is read twice: for the baseline and for the picked policy."""

    validation_scenes: int = Field(100, ge=0)
    test_scenes: int = Field(300, ge=0)
    questions_per_scene: int = Field(2, ge=0, description="per POPE split: one yes and one no")
    bootstrap_samples: int = Field(1000, ge=1)
    samples_shown: int = Field(24, ge=0, description="test images in samples.html")


class Run(Section):
    """Where and with which seed."""

    dir: Path = Path("runs/run")
    seed: int = 0


class Cluster(Section):
    """The Ray cluster. None starts a local one on this machine."""

    address: str | None = None
    start_timeout_s: float = Field(300.0, gt=0)


class RunConfig(Section):
    """Everything a run needs. Written resolved to RUN_DIR/config.json."""

    run: Run = Run()
    cluster: Cluster = Cluster()
    model: Model = Model()
    data: Data = Data()
    rollout: Rollout = Rollout()
    reward: Reward = Reward()
    learner: Learner = Learner()
    mixture: Mixture = Mixture()
    loop: Loop = Loop()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _checkpoints_follow_a_publish(self) -> RunConfig:
        if self.checkpoint.interval % self.loop.publish_interval:
            raise ValueError(
                f"checkpoint.interval must be a multiple of loop.publish_interval, got {self.checkpoint.interval} and "
                f"{self.loop.publish_interval}; change one of them"
            )
        return self

    @model_validator(mode="after")
    def _offline_present(self) -> RunConfig:
        if self.mixture.online_fraction < 1 and self.data.offline is None:
            raise ValueError(
                f"mixture.online_fraction = {self.mixture.online_fraction} needs offline pairs, got none; "
                "set data.offline.path (python -m cluster.generate bdhs writes one) or online_fraction = 1"
            )
        return self
