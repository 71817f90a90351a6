"""The configuration of a run: one pydantic tree whose defaults are the vetted setting.

A preset is a TOML file of these fields; `--section.key value` overrides one of them (see `common/config/overrides.py`).
Fields whose value the papers do not state say so ("ours").
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from common.config.bdhs import BdhsConfig
from common.config.losses import DEFAULT_KIND, AnyLoss, Loss, Sigmoid, inherited
from common.config.section import Section as Section
from common.sources import ONLINE, ONLINE_BDHS, RLOO

SHAPES_POLICY = "common/shapes/policy"


def by_kind(default: str) -> Discriminator:
    """Pick a member of a union of sections by its `kind`, so that `--model.tuning.r 8` alone is an error about r."""

    def kind_of(value: Any) -> Any:
        if isinstance(value, dict):
            return value.get("kind", default)
        # None for what is no section: an error that names the valid kinds.
        return getattr(value, "kind", None)

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
    sides: tuple[Literal["language", "projector", "vision"], ...] = Field(
        ("language",),
        min_length=1,
        description="vision and projector take all their linear layers",
    )
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    quantize: Literal["none", "nf4"] = Field(
        "none",
        description="nf4: the language side's linear layers in 4 bits (QLoRA, arXiv 2305.14314)",
    )
    push: Literal["merged", "adapter"] = Field(
        "merged",
        description="what engines get: all weights, merged, or the adapter alone, which they run beside the start "
        "policy's weights (language side only; fewer bytes, slower sampling)",
    )

    @model_validator(mode="after")
    def _adapter_is_all_that_changes(self) -> Lora:
        if self.push == "adapter" and (
            self.sides != ("language",) or self.quantize != "none"
        ):
            raise ValueError(
                f"model.tuning.push = adapter needs sides = language and quantize = none, since engines keep the start "
                f"policy's weights, got {', '.join(self.sides)} and {self.quantize}; set push = merged"
            )
        return self


Tuning = Annotated[
    Annotated[Full, Tag("full")] | Annotated[Lora, Tag("lora")], by_kind("full")
]


class Model(Section):
    """The start policy, a Hugging Face directory, and what of it is trained."""

    path: str = SHAPES_POLICY
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_length: int = Field(
        512,
        ge=16,
        description="tokens of prompt + response; longer ones are refused and counted",
    )
    tuning: Tuning = Full()
    freeze_vision: bool = Field(
        True, description="freeze the vision tower; the projector stays trainable"
    )


class ShapesPrompts(Section):
    """Caption prompts on rendered scenes."""

    kind: Literal["shapes"] = "shapes"
    count: int = Field(2000, ge=1)
    seed: int = 0


class PromptFile(Section):
    """Prompts from a data set on disk (`prompts.parquet` beside an `images/` folder)."""

    kind: Literal["file"] = "file"
    path: str
    rows: int | None = Field(
        None, ge=1, description="read so many rows, the first ones; none: all"
    )


class PairFile(Section):
    """Offline pair sets (`pairs.parquet` beside an `images/` folder), as `cluster.generate` writes them."""

    path: str | tuple[str, ...] = Field(
        description="one folder, or several that are read as one set"
    )
    by_prompt: bool = Field(
        False,
        description="epochs shuffle prompts, not pairs: a prompt's pairs come one after the other, in one batch when "
        "its offline share is a multiple of their number (mixture.kind ratio, or offline only)",
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """The folders, also when there is one."""
        return (self.path,) if isinstance(self.path, str) else self.path


PromptSource = Annotated[
    Annotated[ShapesPrompts, Tag("shapes")] | Annotated[PromptFile, Tag("file")],
    by_kind("shapes"),
]


class Data(Section):
    """Where prompts and offline pairs come from. Validation picks the checkpoint, test is only reported."""

    prompts: PromptSource = ShapesPrompts()
    offline: PairFile | None = None


class EngineOptions(Section):
    """vLLM engine arguments that people tune."""

    max_num_seqs: int = Field(64, ge=1)
    kv_cache_bytes: int = Field(
        64 << 20, ge=0, description="0 leaves the size to vLLM (GPU)"
    )
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    tensor_parallel_size: int = Field(1, ge=1)
    block_size: int | None = None
    enforce_eager: bool = True


class OnlineBdhs(BdhsConfig):
    """BDHS as an online source of pairs (`mixture.online_bdhs_fraction`); its draws follow `run.seed` as well."""

    similarity: str = Field(
        "lexical",
        description="lexical, or a sentence-transformers model by name or folder",
    )


class Rollout(Section):
    """Sampling from the current policy. k is not stated by the paper (ours)."""

    num_workers: int = Field(1, ge=1)
    num_completions: int = Field(2, ge=2, description="k completions per prompt")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(96, ge=1)
    prompts_per_call: int = Field(8, ge=1, description="groups per call of a worker")
    deterministic: bool = Field(
        False, description="in-process engine stepped by the worker, seeded per prompt"
    )
    engine: EngineOptions = EngineOptions()
    bdhs: OnlineBdhs = OnlineBdhs()
    num_cpus: float = 1
    num_gpus: float = 0


class RulesJudge(Section):
    """The shapes world's rule-based judge: what the caption says against what the scene holds."""

    kind: Literal["rules"] = "rules"
    hallucination_cost: float = Field(1.0, ge=0)
    attribute_cost: float = Field(0.5, ge=0)
    miss_cost: float = Field(0.5, ge=0)


class PolicyJudge(Section):
    """A vision-language model, asked yes/no about every object a caption claims. The start policy: a weak judge."""

    kind: Literal["policy"] = "policy"
    path: str = SHAPES_POLICY
    max_length: int = Field(512, ge=16)


JudgeConfig = Annotated[
    Annotated[RulesJudge, Tag("rules")] | Annotated[PolicyJudge, Tag("policy")],
    by_kind("rules"),
]


class Reward(Section):
    """Judging and pairing: best against worst; pairs closer than `min_margin` are ties."""

    judge: JudgeConfig = RulesJudge()
    num_workers: int = Field(1, ge=1)
    min_margin: float = Field(1e-6, ge=0)
    max_retries: int = Field(2, ge=0)
    num_cpus: float = 0


class Optimizer(Section):
    """AdamW with linear warm-up, then the schedule."""

    lr: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = Field(10, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    max_grad_norm: float = Field(1.0, gt=0)


class Fast(Section):
    """Switches of the learner's fast paths. They change time and memory, not the result.

    A path that the model or machine does not support falls back to the plain one, and the run says why.
    """

    share_prompt: bool = Field(
        True, description="prompt and completions once per pair, without padding"
    )
    share_vision: bool = Field(
        True,
        description="frozen parts of the vision side run once for policy and reference",
    )
    vision_cache_mb: int = Field(
        256, ge=0, description="of image features that are kept across steps"
    )
    fused_logps: bool = Field(
        True, description="head and log softmax in one, gradients included"
    )
    fused_layers: bool = Field(
        True,
        description="decoder layers with few passes over memory, the last one for predicting positions alone",
    )
    onednn: bool = Field(
        True,
        description="on CPUs with AVX-512 not by Intel: float32 linear layers by oneDNN, not MKL",
    )
    pack_tokens: int = Field(
        0,
        ge=0,
        description="tokens per forward; 0 leaves the cut to learner.micro_batch",
    )
    reference_cache: str = Field(
        "run",
        description="reference log-probs of offline pairs: below the run's folder, in a folder of this name, or off",
    )


LossConfig = Annotated[AnyLoss, by_kind(DEFAULT_KIND)]


class Learner(Section):
    """The training side. global_batch = pairs per optimizer update over all ranks."""

    engine: Literal["deepspeed", "torch"] = "deepspeed"
    num_steps: int = Field(100, ge=1)
    global_batch: int = Field(32, ge=1)
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
        description="in a row with a loss or gradient that is not finite, or without a usable pair, then stop",
    )
    grounding_pairs: int = Field(
        16,
        ge=0,
        description="pairs of a checkpoint's batch for the grounding gate, 0: none",
    )
    fast: Fast = Fast()
    loss: LossConfig = Sigmoid()
    source_losses: dict[str, LossConfig] = Field(
        {}, description="by PreferencePair.source"
    )
    optimizer: Optimizer = Optimizer()
    num_cpus: float = 1
    num_gpus: float = 0

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
            return values  # the fields' own validation explains what is wrong
        completed = {}
        for source, loss in sources.items():
            completed[source] = inherited(run, loss) if isinstance(loss, dict) else loss
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


class Mixture(Section):
    """Offline and online pairs in one batch. `bernoulli` with 0.5 is Mixed-DPO (arXiv 2407.02477, Eq. 4)."""

    kind: Literal["bernoulli", "ratio", "schedule"] = "bernoulli"
    online_fraction: float = Field(
        0.5, ge=0, le=1, description="1 = online DPO, 0 = offline DPO"
    )
    start_fraction: float = Field(
        0.0, ge=0, le=1, description="of schedule: online_fraction at the first step"
    )
    online_bdhs_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the online pairs that are BDHS's (rollout.bdhs), not the judge's",
    )

    @property
    def fractions(self) -> tuple[float, ...]:
        """The values that the online fraction has over a run: its ends for `schedule`, else one value."""
        if self.kind == "schedule":
            return (self.start_fraction, self.online_fraction)
        return (self.online_fraction,)


class Loop(Section):
    """How far rollouts may run ahead of the learner. max_staleness 0 is strictly on-policy."""

    max_staleness: int = Field(1, ge=0)
    publish_interval: int = Field(
        1, ge=1, description="learner steps per published weight version"
    )
    heartbeat_s: float = Field(30.0, gt=0)
    stall_limit_s: float = Field(
        600.0,
        gt=0,
        description="stop with the drop histogram if no batch forms for so long",
    )
    call_timeout_s: float = Field(
        600.0, gt=0, description="limit of any one remote call"
    )
    probe_tolerance: float = Field(
        1e-3, gt=0, description="max |Δ token log-prob| between learner and engine"
    )


class Checkpoint(Section):
    """Every `interval` steps: state for --resume, and a look at the validation scenes."""

    interval: int = Field(25, ge=1)
    keep: int = Field(2, ge=1)


class ShapesSuite(Section):
    """Rendered scenes: captions measured by CHAIR and by the judge, yes/no questions measured by POPE."""

    kind: Literal["shapes"] = "shapes"
    name: str = Field("shapes", description="of the suite in the scorecard")
    validation_scenes: int = Field(100, ge=0)
    test_scenes: int = Field(300, ge=0)
    questions_per_scene: int = Field(
        2, ge=0, description="per POPE split: one yes and one no"
    )


# One kind so far: a second one makes this a union by kind, as JudgeConfig is.
SuiteConfig: TypeAlias = ShapesSuite


class Evaluation(Section):
    """What measures a policy. Test is read twice: for the start policy and for the picked policy."""

    suites: tuple[SuiteConfig, ...] = Field(
        (),
        description='suites by kind; a bare name such as "shapes" takes the defaults of its kind. '
        "Without any, the last checkpoint becomes the policy",
    )
    bootstrap_samples: int = Field(1000, ge=1)
    samples_shown: int = Field(24, ge=0, description="test images in samples.html")
    pairs: str | None = Field(
        None,
        description="held-out pair set for the grounding gate; the shapes suite makes its own from its scenes",
    )
    grounding_pairs: int = Field(
        100, ge=0, description="pairs of the scorecard's grounding gate, 0: none"
    )
    grounding_gain: float = Field(
        0.1,
        ge=0,
        le=1,
        description="what the true picture must add to the gate's accuracy; less is a warning",
    )

    @field_validator("suites", mode="before")
    @classmethod
    def _expand_bare_names(cls, values: Any) -> Any:
        if not isinstance(values, list | tuple):
            return values
        sections = []
        for value in values:
            section = {"kind": value} if isinstance(value, str) else value
            if isinstance(section, dict) and "kind" not in section:
                raise ValueError('expected a kind in every suite; add kind = "shapes"')
            sections.append(section)
        return sections

    @model_validator(mode="after")
    def _names_differ(self) -> Evaluation:
        names = [suite.name for suite in self.suites]
        if len(set(names)) < len(names):
            raise ValueError(
                f"evaluation.suites: expected different names, got {', '.join(names)}; set their name"
            )
        return self


class Run(Section):
    """Where and with which seed."""

    dir: Path = Path("runs/run")
    seed: int = 0


class Cluster(Section):
    """The Ray cluster. None starts a local one on this machine."""

    address: str | None = None
    start_timeout_s: float = Field(300.0, gt=0)


class RunConfig(Section):
    """Everything a run needs. Written resolved to RUN_DIR/config.json.

    `keys_read` are the keys, or sections, that overrides may name, () for all; `job_defaults` lie below the preset.
    Both are for the trees of other commands (`common/config/jobs.py`).
    """

    keys_read: ClassVar[tuple[str, ...]] = ()
    job_defaults: ClassVar[dict[str, Any]] = {}

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

    @property
    def judged_source(self) -> str:
        """The source of judged pairs: best against worst, or with RLOO all completions two by two."""
        return RLOO if self.learner.loss_of(RLOO).reads_advantages else ONLINE

    @property
    def pairs_per_group(self) -> int:
        """Number of pairs that a judged group becomes."""
        return self.rollout.num_completions // 2 if self.judged_source == RLOO else 1

    @property
    def online_sources(self) -> tuple[str, ...]:
        """The sources that fill the online slots of a batch, at least one."""
        bdhs_fraction = self.mixture.online_bdhs_fraction
        sources: list[str] = []
        if bdhs_fraction < 1:
            sources.append(self.judged_source)
        if bdhs_fraction > 0:
            sources.append(ONLINE_BDHS)
        return tuple(sources)

    @model_validator(mode="after")
    def _checkpoints_follow_a_publish(self) -> RunConfig:
        if self.checkpoint.interval % self.loop.publish_interval:
            raise ValueError(
                f"checkpoint.interval must be a multiple of loop.publish_interval, got {self.checkpoint.interval} and "
                f"{self.loop.publish_interval}; change one of them"
            )
        return self

    @model_validator(mode="after")
    def _quantised_whole(self) -> RunConfig:
        tuning = self.model.tuning
        is_quantized = isinstance(tuning, Lora) and tuning.quantize != "none"
        if is_quantized and self.learner.zero_stage == 3:
            raise ValueError(
                "learner.zero_stage = 3 cannot split 4-bit weights, got model.tuning.quantize = nf4; use stage 2"
            )
        return self

    @model_validator(mode="after")
    def _pairs_held_out(self) -> RunConfig:
        if self.data.offline is None or self.evaluation.pairs is None:
            return self
        held_out = Path(self.evaluation.pairs).resolve()
        trained = [Path(path).resolve() for path in self.data.offline.paths]
        if held_out in trained:
            raise ValueError(
                f"evaluation.pairs must be pairs that are not trained on, got {self.evaluation.pairs}, which is in "
                "data.offline.path; keep some aside"
            )
        return self

    @model_validator(mode="after")
    def _completions_pair_up(self) -> RunConfig:
        if self.judged_source == RLOO and self.rollout.num_completions % 2:
            raise ValueError(
                f"rollout.num_completions must be even for the rloo loss, got {self.rollout.num_completions}; add one"
            )
        return self

    @model_validator(mode="after")
    def _offline_present(self) -> RunConfig:
        fraction = min(self.mixture.fractions)
        if fraction < 1 and self.data.offline is None:
            raise ValueError(
                f"mixture.online_fraction = {fraction} needs offline pairs, got none; "
                "set data.offline.path (python -m cluster.generate bdhs writes one) or online_fraction = 1"
            )
        return self
