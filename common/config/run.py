"""The root of the tree, and the rules that hold between its sections."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn

from pydantic import AfterValidator, Field, model_validator

from common.config.data import Data
from common.config.evaluation import Evaluation, Tracking
from common.config.learner import Learner
from common.config.loop import Checkpoint, Loop, Mixture, Weights
from common.config.losses import Loss
from common.config.model import Lora, Model
from common.config.reward import Reward
from common.config.rollout import Rollout
from common.config.section import PathOnDisk, Section, Seed
from common.push.adapter import pushes_adapter
from common.sources import ONLINE, ONLINE_BDHS, WITH_ADVANTAGES

RANKS = "learner.num_ranks"
SET_BY_US = {
    "CUDA_VISIBLE_DEVICES": "rollout.num_gpus and learner.num_gpus",
    "DS_ACCELERATOR": "learner.num_gpus",
    "LOCAL_RANK": RANKS,
    "RANK": RANKS,
    "SIGHTLINE_NODE_ADDRESS": "nothing, it is what Ray knows a node by (ray start --node-ip-address)",
    "SIGHTLINE_ACTOR_PID": "nothing, it is how vLLM's processes find their actor",
    "WORLD_SIZE": RANKS,
    "MASTER_ADDR": RANKS,
    "MASTER_PORT": RANKS,
    "OMP_NUM_THREADS": "rollout.num_cpus and learner.num_cpus",
    "TORCHDYNAMO_DISABLE": "rollout.engine.enforce_eager",
    "TORCH_COMPILE_DISABLE": "rollout.engine.enforce_eager",
    "VLLM_CPU_KVCACHE_SPACE": "rollout.engine.kv_cache_bytes",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "rollout.deterministic",
    "VLLM_LOGGING_CONFIG_PATH": "SIGHTLINE_DEBUG=1 where the command runs",
    "HF_DEACTIVATE_ASYNC_LOAD": "learner.zero_stage = 3 for less memory at the start",
    "HF_HUB_OFFLINE": "model.path, a folder",
    "TRANSFORMERS_OFFLINE": "model.path, a folder",
}
"""Variables of an actor that are not the user's -> the key to set instead."""
SECRET_WORDS = {
    "APIKEY",
    "CREDENTIALS",
    "KEY",
    "PASSPHRASE",
    "PASSWD",
    "PASSWORD",
    "SECRET",
    "TOKEN",
}


class Run(Section):
    """Where the run's files go, and the seed of everything random in it."""

    dir: PathOnDisk = Field(
        Path("runs/run"), description="folder of checkpoints, metrics and reports"
    )
    seed: Seed = Field(0, description="of everything random in the run")


def _allowed_name(name: str) -> str:
    """The name of a variable that actors may be given (ValueError for another)."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("expected a name of letters, digits and underscores")
    if name in SET_BY_US:
        raise ValueError(
            f"expected a variable that sightline does not set itself; set {SET_BY_US[name]}"
        )
    if name.startswith("RAY_"):
        raise ValueError(
            "expected a variable that is not Ray's; set it where `ray start` runs"
        )
    return name


def _without_secrets(variables: dict[str, str]) -> dict[str, str]:
    """The variables, none of which looks like a secret: by a word of its name, or by a password in an address."""
    for name, value in variables.items():
        words = name.upper().split("_")
        has_password = re.search(r"://[^/@]*:[^/@]*@", value)
        if has_password or not SECRET_WORDS.isdisjoint(words):
            raise ValueError(
                f"expected no secrets, since config.json shows them, got {name}; name it in cluster.pass_env"
            )
        if "\0" in value:
            raise ValueError(f"expected text without zero bytes, got one in {name}")
    return variables


VariableName = Annotated[str, AfterValidator(_allowed_name)]


class Cluster(Section):
    """The Ray cluster."""

    address: str | None = Field(
        None, description="of a running cluster; none starts one on this machine"
    )
    start_timeout_s: float = Field(
        300.0,
        gt=0,
        description="limit for the reservation of CPUs and GPUs, and for the start of a worker's process: "
        "heartbeat_limit_s counts from its first pulse",
    )
    gpu: Literal["a100-80", "h100", "h200", "l40s"] | None = Field(
        None,
        description="kind of the GPUs, for the planner (--dry-run); none: this machine's",
    )
    gpus_per_node: int = Field(8, ge=1, description="for the planner")
    placement: Literal["disaggregated", "colocated"] = Field(
        "disaggregated",
        description="disaggregated: engines and learner have GPUs of their own; colocated: they share them and take "
        "turns",
    )
    sleep_level: Literal[1, 2] = Field(
        1,
        description="of vLLM, while the learner works: 1 keeps the engine's weights in CPU memory, 2 drops them",
    )
    heartbeat_limit_s: float = Field(
        60.0,
        gt=0,
        description="a worker that says nothing for so long hangs, and is restarted",
    )
    max_restarts_per_hour: int = Field(
        20,
        ge=0,
        description="of workers that died or hang, all together; then the run stops. 0 restarts none",
    )
    # Without repr, so that no error shows a value.
    env: Annotated[dict[VariableName, str], AfterValidator(_without_secrets)] = Field(
        {},
        repr=False,
        description="environment variables of all actors, such as --cluster.env.NCCL_DEBUG INFO",
    )
    pass_env: tuple[VariableName, ...] = Field(
        (),
        description="names of variables that actors take over from the command's environment, secrets for example; "
        "their values are written nowhere",
    )

    @model_validator(mode="after")
    def _one_value_a_variable(self) -> Cluster:
        twice = sorted(set(self.env).intersection(self.pass_env))
        if twice:
            raise ValueError(
                f"expected every variable once, got {twice[0]} in env and in pass_env; leave one out"
            )
        return self


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
    weights: Weights = Weights()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()

    @property
    def pushes_adapter(self) -> bool:
        """Whether engines get the adapter of a LoRA policy alone."""
        return pushes_adapter(self.model, self.rollout)

    @property
    def shares_gpus(self) -> bool:
        """Whether an engine and the ranks beside it hold their weights on the same GPUs."""
        shares = self.cluster.placement == "colocated"
        return shares and self.rollout.num_gpus > 0

    @property
    def transport(self) -> str:
        """`weights.transport`, or what `auto` means for this run."""
        transport = self.weights.transport
        if transport != "auto":
            return transport
        return "adapter" if self.pushes_adapter else "broadcast"

    @property
    def judged_source(self) -> str:
        """The source of judged pairs: best against worst, or for a policy gradient all completions two by two."""
        for source in sorted(WITH_ADVANTAGES):
            if self.learner.loss_of(source).judged_source == source:
                return source
        return ONLINE

    @property
    def judged_loss(self) -> Loss:
        """The loss of judged pairs."""
        return self.learner.loss_of(self.judged_source)

    @property
    def pairs_per_group(self) -> int:
        """Number of pairs that a judged group becomes."""
        if self.judged_source in WITH_ADVANTAGES:
            return self.rollout.num_completions // 2
        return 1

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

    @property
    def offline_draw(self) -> Literal["epochs", "by_prompt", "by_value"]:
        """Which offline pair comes next: `mixture.offline_draw`, or epochs of prompts (`data.offline.by_prompt`)."""
        offline = self.data.offline
        if offline is not None and offline.by_prompt:
            return "by_prompt"
        return self.mixture.offline_draw

    @property
    def run_ahead(self) -> int:
        """How old an online pair may be when it is first trained on, in versions: its other uses come later."""
        num_others = self.mixture.online_uses - 1
        num_versions = -(-num_others // self.loop.publish_interval)
        return self.loop.max_staleness - num_versions

    @model_validator(mode="before")
    @classmethod
    def _held_out_prompts_are_measured(cls, values: Any) -> Any:
        """Measure prompts that are held out, where no suites are named."""
        if not isinstance(values, dict):
            return values
        data = values.get("data", {})
        evaluation = values.get("evaluation", {})
        if not isinstance(data, dict) or not isinstance(evaluation, dict):
            return values
        holds_out = any(data.get(split) is not None for split in ("validation", "test"))
        if not holds_out or "suites" in evaluation:
            return values
        return {**values, "evaluation": {**evaluation, "suites": ["prompts"]}}

    @model_validator(mode="after")
    def _checkpoints_follow_a_publish(self) -> RunConfig:
        if self.checkpoint.interval % self.loop.publish_interval:
            raise ValueError(
                f"checkpoint.interval must be a multiple of loop.publish_interval, got {self.checkpoint.interval} and "
                f"{self.loop.publish_interval}; change one of them"
            )
        return self

    @model_validator(mode="after")
    def _uses_fit_into_the_staleness(self) -> RunConfig:
        if self.run_ahead < 0:
            needed = self.loop.max_staleness - self.run_ahead
            raise ValueError(
                f"mixture.online_uses = {self.mixture.online_uses} needs loop.max_staleness of at least {needed}, for "
                f"a pair ages from use to use, got {self.loop.max_staleness}; raise it, or set online_uses = 1"
            )
        return self

    @model_validator(mode="after")
    def _one_order_of_offline_pairs(self) -> RunConfig:
        offline = self.data.offline
        if self.mixture.offline_draw == "by_value" and offline and offline.by_prompt:
            raise ValueError(
                "mixture.offline_draw = by_value draws single pairs, got data.offline.by_prompt; leave one out"
            )
        return self

    @model_validator(mode="after")
    def _transport_is_there(self) -> RunConfig:
        """Refuse a transport that this run's machines lack, and let it say what of a LoRA policy is pushed."""
        transport = self.weights.transport
        if transport == "auto":
            return self
        if transport == "ipc" and not self.shares_gpus:
            _refuse_transport(self, "engines and ranks on shared GPUs")
        tuning = self.model.tuning
        if not isinstance(tuning, Lora):
            if transport == "adapter":
                _refuse_transport(self, "model.tuning.kind = lora")
            return self
        pushed = "adapter" if transport == "adapter" else "merged"
        model = _pushing(self.model, tuning, pushed, transport)
        # The section is frozen for everybody else.
        object.__setattr__(self, "model", model)
        return self

    @model_validator(mode="after")
    def _turns_work_out(self) -> RunConfig:
        if self.cluster.placement == "colocated":
            _check_colocated(self.rollout, self.learner)
            if self.cluster.sleep_level == 2:
                _check_dropped_weights(self.model, self.rollout, self.loop)
        return self

    @model_validator(mode="after")
    def _quantised_whole(self) -> RunConfig:
        if self.model.tuning.is_quantized and self.learner.zero_stage == 3:
            raise ValueError(
                "learner.zero_stage = 3 cannot split 4-bit weights, got model.tuning.quantize = nf4; use stage 2"
            )
        return self

    @model_validator(mode="after")
    def _pairs_held_out(self) -> RunConfig:
        if self.data.offline is None:
            return self
        trained = [Path(path).resolve() for path in self.data.offline.paths]
        for key, path in self.evaluation.pair_sets():
            if Path(path).resolve() in trained:
                raise ValueError(
                    f"{key} must be pairs that are not trained on, got {path}, which is in data.offline.path; "
                    "keep some aside"
                )
        return self

    @model_validator(mode="after")
    def _completions_pair_up(self) -> RunConfig:
        num_completions = self.rollout.num_completions
        if self.judged_source in WITH_ADVANTAGES and num_completions % 2:
            raise ValueError(
                f"rollout.num_completions must be even for the {self.judged_loss.kind} loss, got {num_completions}; "
                "add one"
            )
        if self.judged_source in WITH_ADVANTAGES and self.rollout.max_completions:
            raise ValueError(
                f"rollout.max_completions: expected none for the {self.judged_loss.kind} loss, whose groups are of one "
                f"size, got {self.rollout.max_completions}; raise rollout.num_completions instead"
            )
        return self

    @model_validator(mode="after")
    def _ratios_are_of_the_policy(self) -> RunConfig:
        """A ratio holds the learner's log-prob against the engine's, both at temperature 1: so must tokens be drawn."""
        rollout = self.rollout
        is_plain = rollout.temperature == 1 and rollout.top_p == 1
        if self.judged_loss.reads_sampling and not is_plain:
            raise ValueError(
                f"rollout.temperature and rollout.top_p must be 1 for the {self.judged_loss.kind} loss, whose ratios "
                f"are of the policy itself, got {rollout.temperature:g} and {rollout.top_p:g}; leave them out"
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


def _refuse_transport(config: RunConfig, needed: str) -> NoReturn:
    there = ["broadcast", "object_store"]
    if isinstance(config.model.tuning, Lora):
        there.insert(0, "adapter")
    if config.shares_gpus:
        there.append("ipc")
    raise ValueError(
        f"weights.transport expects one that this run has ({', '.join(there)}), got {config.weights.transport}, which "
        f"needs {needed}; take one of them"
    )


def _pushing(model: Model, tuning: Lora, pushed: str, transport: str) -> Model:
    """The model section with what the transport carries (ValueError when it says otherwise itself)."""
    if "push" in tuning.model_fields_set and tuning.push not in ("auto", pushed):
        raise ValueError(
            f"weights.transport = {transport} carries {pushed} weights, got model.tuning.push = {tuning.push}; leave "
            "one of them out"
        )
    changed = Lora.model_validate({**tuning.model_dump(), "push": pushed})
    return model.model_copy(update={"tuning": changed})


def _check_colocated(rollout: Rollout, learner: Learner) -> None:
    """Raise ValueError unless every rank has a GPU that one engine has, too."""
    if learner.num_ranks % rollout.num_workers:
        raise ValueError(
            f"cluster.placement = colocated expects as many ranks beside every engine, got {learner.num_ranks} ranks "
            f"and {rollout.num_workers} engines; make learner.num_ranks a multiple of rollout.num_workers"
        )
    ranks_per_engine = learner.num_ranks // rollout.num_workers
    if rollout.num_gpus == 0 and learner.num_gpus == 0:
        return
    if learner.num_gpus != 1 or rollout.num_gpus != ranks_per_engine:
        raise ValueError(
            "cluster.placement = colocated expects learner.num_gpus = 1, and rollout.num_gpus = the ranks per engine "
            f"({ranks_per_engine}), got {learner.num_gpus:g} and {rollout.num_gpus:g}; both count the shared GPUs"
        )


def _check_dropped_weights(model: Model, rollout: Rollout, loop: Loop) -> None:
    """Raise ValueError unless every wake is followed by a push of all weights."""
    if loop.publish_interval != 1:
        raise ValueError(
            "cluster.sleep_level = 2 drops an engine's weights at every step and needs loop.publish_interval = 1, got "
            f"{loop.publish_interval}; set sleep_level = 1"
        )
    if pushes_adapter(model, rollout):
        raise ValueError(
            "cluster.sleep_level = 2 drops an engine's weights and needs pushes of all of them, got adapters alone; "
            "set sleep_level = 1, or model.tuning.push = merged"
        )
