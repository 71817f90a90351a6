"""How rollouts and learner steps meet: the mixture, staleness, weight pushes, checkpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from common.config.section import Section


class Mixture(Section):
    """Offline and online pairs in one batch. `bernoulli` with 0.5 is Mixed-DPO (arXiv 2407.02477, Eq. 4)."""

    kind: Literal["bernoulli", "ratio", "schedule"] = "bernoulli"
    online_fraction: float = Field(
        0.5, ge=0, le=1, description="1 = online DPO, 0 = offline DPO"
    )
    start_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="kind schedule: the fraction of the first step, which moves to online_fraction",
    )
    online_bdhs_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the online pairs that are BDHS's (rollout.bdhs), not the judge's",
    )
    online_uses: int = Field(
        1,
        ge=1,
        description="how often an online pair is trained on, as long as loop.max_staleness allows; with 2, half the "
        "rollouts do (ours)",
    )
    offline_draw: Literal["epochs", "by_value"] = Field(
        "epochs",
        description="which offline pair comes next. epochs: every one once, then all again in another order; by_value: "
        "more often those whose chosen answer the policy does not prefer yet (ours)",
    )

    @property
    def fractions(self) -> tuple[float, ...]:
        """The values that the online fraction has over a run: its ends for `schedule`, else one value."""
        if self.kind == "schedule":
            return (self.start_fraction, self.online_fraction)
        return (self.online_fraction,)


class Warnings(Section):
    """When a run says that it does harm (ours; see `cluster/harm/`). The metrics are written in any case."""

    enabled: bool = Field(True, description="false: no warning")
    window: int = Field(
        5, ge=2, description="steps whose mean is held against the run's first ones"
    )
    end_token: float = Field(
        0.03,
        gt=0,
        description="fall of the end token's log-prob on chosen answers, against the reference, in nats",
    )
    chosen_logp: float = Field(
        0.05,
        gt=0,
        description="fall of the chosen answers' log-prob against the reference, in nats per token",
    )
    length: float = Field(
        0.2, gt=0, description="growth of sampled answers; 0.2 is a fifth more tokens"
    )
    cut_off: float = Field(
        0.1,
        gt=0,
        description="growth of the share of answers that reach rollout.max_tokens",
    )
    diversity: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share that is lost of what the completions of a group differ by",
    )
    longer_wins: float = Field(
        0.75, ge=0.5, lt=1, description="share of groups whose longer answer wins"
    )
    first_wins: float = Field(
        0.65,
        ge=0.5,
        lt=1,
        description="share of verdicts for the answer that was shown first, or for the one shown second",
    )
    blind: float = Field(
        0.8,
        gt=0,
        le=1,
        description="of the implicit rewards' accuracy above chance, the share that a blank picture leaves",
    )


class Loop(Section):
    """How far rollouts may run ahead of the learner, and how long the run waits for anything."""

    max_staleness: int = Field(
        1,
        ge=0,
        description="oldest weights that a pair may be from, in versions behind the learner; 0 is strictly on-policy",
    )
    publish_interval: int = Field(
        1, ge=1, description="learner steps per published weight version"
    )
    heartbeat_s: float = Field(
        30.0,
        gt=0,
        description="between warnings while no batch forms, or a checkpoint gets no new byte",
    )
    stall_limit_s: float = Field(
        600.0,
        gt=0,
        description="stop if no batch forms for so long, with the drop histogram, or a checkpoint gets no new byte",
    )
    call_timeout_s: float = Field(
        600.0, gt=0, description="limit of any one remote call"
    )
    probe_answers: int = Field(
        8,
        ge=1,
        le=64,
        description="of the run's own prompts, which learner and engines score at every push; 8-16 are enough",
    )
    probe_tokens: int = Field(
        32, ge=1, le=1024, description="of each such answer; the rest is left out"
    )
    probe_warn: float = Field(
        2.0,
        ge=1,
        description="warn when mean |Δ log-prob| or KL between learner and engine passes so often its value at the "
        "start policy, and half of probe_slack",
    )
    probe_fail: float = Field(
        3.0,
        ge=1,
        description="stop when it passes so often that value, and probe_slack",
    )
    probe_slack: float = Field(
        0.01, ge=0, description="nats beside the multiples of the start's values"
    )
    probe_start: float = Field(
        0.3,
        gt=0,
        description="mean |Δ log-prob| (nats) at the start policy, above which engines hold another model",
    )
    warnings: Warnings = Warnings()

    @model_validator(mode="after")
    def _warns_before_it_fails(self) -> Loop:
        if self.probe_warn > self.probe_fail:
            raise ValueError(
                f"loop.probe_warn must be at most loop.probe_fail, got {self.probe_warn:g} and {self.probe_fail:g}; "
                "lower it"
            )
        return self


class Weights(Section):
    """The way of a weight push, and its limits."""

    transport: Literal["auto", "adapter", "broadcast", "ipc", "object_store"] = Field(
        "auto",
        description="adapter: of LoRA the adapter alone, which engines run beside the start policy; broadcast: all "
        "weights, merged, in buckets from the learner to all engines at once; ipc: the same over GPUs that both share, "
        "seen on one GPU; object_store: all weights through Ray, for machines without a common network; auto: "
        "adapter for LoRA where engines can run it, else broadcast",
    )
    wire: Literal["auto", "gloo"] = Field(
        "auto",
        description="of broadcast. auto: NCCL between GPUs, else shared memory where learner and engines are on one "
        "machine, else gloo; gloo: TCP, always",
    )
    bucket_mib: int = Field(
        16,
        ge=1,
        le=8192,
        description="size of a bucket; two of them are in memory at each end",
    )
    timeout_s: float = Field(
        60.0,
        gt=0,
        description="limit for learner and engines to come together once the first bucket is full, and for any one "
        "bucket; what the learner does before it has loop.call_timeout_s",
    )


class Checkpoint(Section):
    """Every `interval` steps the state is saved for --resume, and the policy is measured on the validation split."""

    interval: int = Field(25, ge=1, description="learner steps between checkpoints")
    keep: int = Field(2, ge=1, description="states for --resume; older ones go")
    background: bool = Field(
        True,
        description="copy the state and write it beside the next steps, with a policy that is the best; false: the "
        "steps wait, which saves the RAM of the copy, 12 bytes for each trained parameter over all ranks",
    )
