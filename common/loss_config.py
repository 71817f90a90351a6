"""Settings of the preference losses; their formulas are in `learner/losses.py`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from common.section import Section

SIMPO_BETA = 2.0


class Loss(Section):
    """The preference loss. `beta` is DPO's 0.1 by default; the papers searched 0.05-0.5 (ipo 0.8-1, hinge 0.02-0.2).

    `rloo` is no preference loss but a policy gradient on the judge's scores, and `beta` the weight of its KL penalty
    (the paper: 0.4, with k = 4 and temperature 1). It is on-policy: use it with `loop.max_staleness = 0`.

    `simpo` knows no reference: `beta` scales log-probs *per token*, not the ratio to a reference, hence its own default
    of 2.0 (the paper: 2.0-2.5). A run that has no other loss never runs the reference in a step.
    """

    kind: Literal[
        "sigmoid",
        "robust",
        "ipo",
        "hinge",
        "simpo",
        "mdpo",
        "ddpo",
        "mpo",
        "povid",
        "rloo",
    ] = "sigmoid"
    beta: float = Field(
        0.1,
        gt=0,
        description=f"for simpo {SIMPO_BETA} unless set, its reward is per token",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="of sigmoid, robust and simpo, and of mpo's sigmoid term",
    )
    nll_weight: float = Field(
        0.0, ge=0, description="weight of the NLL of the chosen side, per token"
    )
    simpo_gamma: float = Field(
        1.0,
        ge=0,
        description="target margin; the paper: 0.3-1.6, about half of beta first",
    )
    mdpo_crop: tuple[float, float] = Field(
        (0.01, 0.2),
        description="smallest and largest share of the image's area that the crop keeps",
    )
    mdpo_image_weight: float = Field(
        1.0, ge=0, description="of the image-preference term"
    )
    mdpo_anchor_weight: float = Field(
        1.0, ge=0, description="of the anchor, which keeps the chosen reward above 0"
    )
    ddpo_gamma: float = Field(
        5.0, ge=1, description="weight of tokens in changed spans, of the others 1"
    )
    ddpo_normalise: bool = Field(
        True,
        description="divide by the sum of weights, as in the paper; beta there 0.5",
    )
    ddpo_min_match: int = Field(
        3,
        ge=1,
        description="a shorter run of equal tokens between changes counts as changed (as in published code)",
    )
    mpo_preference_weight: float = Field(0.8, ge=0, description="of the sigmoid term")
    mpo_quality_weight: float = Field(
        0.2, ge=0, description="of the BCO term, each side against the mean reward"
    )
    mpo_generation_weight: float = Field(
        1.0, ge=0, description="of the chosen side's NLL per token"
    )
    povid_noise_step: int = Field(
        500,
        ge=0,
        le=999,
        description="of 1000; 500 leaves 75 % of the image's variance",
    )
    povid_shared_indices: bool = Field(
        True, description="reference scores the policy's tokens; false: as published"
    )
    rloo_normalise: bool = Field(
        True, description="divide advantages by their root mean square over the batch"
    )

    @model_validator(mode="before")
    @classmethod
    def _beta_of_its_kind(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind") == "simpo":
            return {"beta": SIMPO_BETA} | values
        return values

    @model_validator(mode="after")
    def _crop_is_a_range(self) -> Loss:
        low, high = self.mdpo_crop
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"mdpo_crop must be two shares with 0 < low <= high <= 1, got {low} and {high}; change it"
            )
        return self


class SourceLoss(Loss):
    """The loss of one source's pairs; what is not set here is as in `learner.loss`.

    `beta` alone is not taken over between simpo and other kinds, to which it means another thing.
    """

    weight: float = Field(1.0, gt=0, description="of each pair in the batch's mean")


def inherited(base: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    """The plain settings of a source's loss over those of the run's."""
    kinds = {
        kind == "simpo"
        for kind in (base.get("kind"), one.get("kind", base.get("kind")))
    }
    return {
        name: value for name, value in base.items() if name != "beta" or len(kinds) == 1
    } | one
