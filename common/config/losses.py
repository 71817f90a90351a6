"""Settings of the losses, one section per kind, for `learner.loss` and `learner.source_losses.NAME`.

The formulas are in `learner/losses/`. What the controller must know of a loss without loading torch is declared here,
as class variables.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, Tag, model_validator

from common.config.section import Section
from common.sources import GRPO, ONLINE, RLOO

DEFAULT_KIND = "sigmoid"


class Loss(Section):
    """Settings that every loss has.

    The papers searched `beta` of DPO over 0.05-0.5, of ipo over 0.8-1, of hinge over 0.02-0.2.
    """

    reads_reference: ClassVar[bool] = True
    """Whether the loss or its metrics read the reference's log-probs. Where none does, the reference never runs."""
    judged_source: ClassVar[str] = ONLINE
    """What judged groups become for it. A policy gradient has a source of its own: all completions with advantages, not
    the best and the worst."""
    reads_sampling: ClassVar[bool] = False
    """Whether it reads the log-probs under which completions were sampled. Where none does, engines return none."""

    kind: str
    beta: float = Field(
        0.1, gt=0, description="strength of the pull towards the reference"
    )
    nll_weight: float = Field(
        0.0, ge=0, description="weight of the NLL of the chosen side, per token"
    )
    weight: float = Field(
        1.0,
        gt=0,
        description="weight of each pair in the batch's mean; only in learner.source_losses",
    )

    @property
    def reads_advantages(self) -> bool:
        """Whether the scores of its pairs are advantages, and each side is trained on for itself."""
        return self.judged_source != ONLINE


class SmoothedLoss(Loss):
    """A loss with a sigmoid term whose labels may be wrong."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="assumed share of pairs whose sides are swapped"
    )


class Sigmoid(SmoothedLoss):
    """DPO (arXiv 2305.18290), with label smoothing cDPO."""

    kind: Literal["sigmoid"] = "sigmoid"


class Robust(SmoothedLoss):
    """Robust DPO (arXiv 2403.00409): unbiased when labels are wrong at the rate `label_smoothing`."""

    kind: Literal["robust"] = "robust"


class Ipo(Loss):
    """IPO (arXiv 2310.12036), length-normalised."""

    kind: Literal["ipo"] = "ipo"


class Hinge(Loss):
    """SLiC (arXiv 2305.10425) as a DPO loss."""

    kind: Literal["hinge"] = "hinge"


class Simpo(SmoothedLoss):
    """SimPO (arXiv 2405.14734). There is no reference: `beta` scales log-probs per token, hence another default."""

    reads_reference: ClassVar[bool] = False

    kind: Literal["simpo"] = "simpo"
    beta: float = Field(
        2.0, gt=0, description="scale of log-probs per token; the paper: 2.0-2.5"
    )
    gamma: float = Field(
        1.0,
        ge=0,
        description="target margin; the paper: 0.3-1.6, about half of beta first",
    )


class Sft(Loss):
    """Supervised fine-tuning on the chosen side: for a source whose chosen answers are to be learnt as they are."""

    reads_reference: ClassVar[bool] = False

    kind: Literal["sft"] = "sft"
    beta: float = Field(
        1.0,
        gt=0,
        description="scale of log-probs per token in the metrics; the loss has none",
    )


class Mdpo(Loss):
    """mDPO (arXiv 2406.11839): DPO, a preference for the whole image over a crop of it, and an anchor."""

    kind: Literal["mdpo"] = "mdpo"
    crop: tuple[float, float] = Field(
        (0.01, 0.2),
        description="smallest and largest share of the image's area that the crop keeps",
    )
    image_weight: float = Field(
        1.0, ge=0, description="weight of the image-preference term"
    )
    anchor_weight: float = Field(
        1.0,
        ge=0,
        description="weight of the anchor, which keeps the chosen reward above 0",
    )

    @model_validator(mode="after")
    def _crop_is_a_range(self) -> Mdpo:
        low, high = self.crop
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"crop must be two shares with 0 < low <= high <= 1, got {low} and {high}; change it"
            )
        return self


class Ddpo(Loss):
    """Dense DPO of RLHF-V (arXiv 2312.00849): tokens in which the answers differ weigh more. The paper: beta 0.5."""

    kind: Literal["ddpo"] = "ddpo"
    gamma: float = Field(
        5.0, ge=1, description="weight of a changed token; others have 1"
    )
    normalise: bool = Field(
        True, description="divide by the sum of weights, as in the paper"
    )
    min_match: int = Field(
        3,
        ge=1,
        description="a run of equal tokens that is shorter than this counts as changed (as in published code)",
    )


class Mpo(SmoothedLoss):
    """MPO (arXiv 2411.10442): which side is better, whether each side is good, and how to write the chosen one."""

    kind: Literal["mpo"] = "mpo"
    preference_weight: float = Field(
        0.8, ge=0, description="weight of the sigmoid term"
    )
    quality_weight: float = Field(
        0.2,
        ge=0,
        description="weight of the BCO term, which holds each side against the mean reward",
    )
    generation_weight: float = Field(
        1.0, ge=0, description="weight of the chosen side's NLL per token"
    )


class Povid(Loss):
    """POVID's second stage (arXiv 2402.11411): DPO against what the policy says of a noised image, token by token."""

    kind: Literal["povid"] = "povid"
    noise_step: int = Field(
        500,
        ge=0,
        le=999,
        description="diffusion step of 1000; 500 leaves 75 % of the image's variance",
    )
    shared_tokens: bool = Field(
        True,
        description="the reference scores the policy's tokens; false: its own, as in published code",
    )


class Rloo(Loss):
    """RLOO (arXiv 2402.14740): a policy gradient on the judge's scores, `beta` the weight of its KL penalty.

    It is on-policy: use it with `loop.max_staleness = 0`. The paper has beta = 0.4 with k = 4 and temperature 1.
    """

    judged_source: ClassVar[str] = RLOO

    kind: Literal["rloo"] = "rloo"
    normalise: bool = Field(
        True, description="divide advantages by their root mean square over the batch"
    )


class Grpo(Loss):
    """GRPO (arXiv 2402.03300): PPO's clipped ratios, advantages relative to the group, one update per batch.

    `beta` is the weight of the KL penalty per token, which the paper has in the loss, not in the reward.
    """

    judged_source: ClassVar[str] = GRPO
    reads_sampling: ClassVar[bool] = True

    kind: Literal["grpo"] = "grpo"
    beta: float = Field(
        0.04,
        gt=0,
        description="weight of the KL penalty per token; 1e-9 for none, as in Dr. GRPO",
    )
    clip: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="a ratio beyond 1 - clip or 1 + clip is not pushed further",
    )
    clip_high: float | None = Field(
        None,
        gt=0,
        description="the upper one of the two (DAPO: 0.28); none: clip",
    )
    normalise: bool = Field(
        True,
        description="divide advantages by the group's standard deviation; false: as in Dr. GRPO",
    )
    divisor: int | None = Field(
        None,
        ge=1,
        description="of a completion's sum over tokens; none: its number of tokens, as in the paper; Dr. GRPO: "
        "rollout.max_tokens for all",
    )


AnyLoss = (
    Annotated[Sigmoid, Tag("sigmoid")]
    | Annotated[Robust, Tag("robust")]
    | Annotated[Ipo, Tag("ipo")]
    | Annotated[Hinge, Tag("hinge")]
    | Annotated[Simpo, Tag("simpo")]
    | Annotated[Sft, Tag("sft")]
    | Annotated[Mdpo, Tag("mdpo")]
    | Annotated[Ddpo, Tag("ddpo")]
    | Annotated[Mpo, Tag("mpo")]
    | Annotated[Povid, Tag("povid")]
    | Annotated[Rloo, Tag("rloo")]
    | Annotated[Grpo, Tag("grpo")]
)
"""Every loss; `common.config` adds the discriminator."""


def loss_sections() -> dict[str, type[Loss]]:
    """The section of every kind."""
    sections: dict[str, type[Loss]] = {}
    for member in get_args(AnyLoss):
        section, tag = get_args(member)
        sections[tag.tag] = section
    return sections


def inherited(run: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    """The settings of a source's loss, completed from those of the run's loss.

    A setting is taken over if it stands in a class that both kinds share: all of them when the kinds are equal. `beta`
    is not taken over between a loss with and one without a reference, where it means another thing, and `weight`
    never.
    """
    run_kind = run.get("kind", DEFAULT_KIND)
    source_kind = source.get("kind", run_kind)
    shared = _shared_settings(str(run_kind), str(source_kind))
    taken = {name: value for name, value in run.items() if name in shared}
    return {"kind": source_kind, **taken, **source}


def _shared_settings(kind: str, other_kind: str) -> set[str]:
    """The settings that mean the same in losses of these two kinds."""
    sections = loss_sections()
    # Validation reports an unknown kind.
    if kind not in sections or other_kind not in sections:
        return set()
    section = sections[kind]
    other = sections[other_kind]
    # Settings of common classes, not common names: `gamma` of simpo and of ddpo are two settings.
    names: set[str] = set()
    for ancestor in section.__mro__:
        if issubclass(ancestor, Loss) and issubclass(other, ancestor):
            names |= set(ancestor.model_fields)
    # Without a reference beta scales log-probs per token, not a ratio.
    if section.reads_reference != other.reads_reference:
        names.discard("beta")
    return names - {"kind", "weight"}
