"""What a policy is measured by, and where a run's metrics go."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import Field, Tag, field_validator, model_validator

from common.config.section import (
    PathOnDisk,
    Section,
    TextOnDisk,
    by_kind,
    expand_bare_kinds,
)
from common.config.suites import PreferenceSuite, SuiteConfig


class Evaluation(Section):
    """What measures a policy. Test is read twice: for the start policy and for the picked policy."""

    suites: tuple[SuiteConfig, ...] = Field(
        (),
        description='suites by kind; a bare name such as "shapes" takes the defaults of its kind. '
        "Without any, the last checkpoint becomes the policy",
    )
    select: str | tuple[str, ...] | None = Field(
        None,
        description="metric that picks the checkpoint on validation, as SUITE.METRIC or METRIC; several in 0-1 pick "
        "by their mean; none: the mean of the suites' own. Of equal checkpoints the earlier one is picked",
    )
    bootstrap_samples: int = Field(1000, ge=1)
    samples_shown: int = Field(24, ge=0, description="test images in samples.html")
    pairs: TextOnDisk | None = Field(
        None,
        description="held-out pair set for the grounding gate; none: those of the first suite that has some",
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

    def pair_sets(self) -> list[tuple[str, str]]:
        """(key, path) of every held-out pair set."""
        named: list[tuple[str, str | None]] = [("evaluation.pairs", self.pairs)]
        for index, suite in enumerate(self.suites):
            if isinstance(suite, PreferenceSuite):
                key = f"evaluation.suites.{index}"
                named.append((f"{key}.validation", suite.validation))
                named.append((f"{key}.test", suite.test))
        return [(key, path) for key, path in named if path is not None]

    @field_validator("suites", mode="before")
    @classmethod
    def _expand_bare_names(cls, values: Any) -> Any:
        return expand_bare_kinds(values, "suite", "shapes")

    @model_validator(mode="after")
    def _names_differ(self) -> Evaluation:
        names = [suite.name for suite in self.suites]
        if len(set(names)) < len(names):
            raise ValueError(
                f"evaluation.suites: expected different names, got {', '.join(names)}; set their name"
            )
        return self


class Wandb(Section):
    """Weights & Biases. Its key comes from the environment (WANDB_API_KEY), or from `wandb login`."""

    kind: Literal["wandb"] = "wandb"
    project: str = "sightline"
    entity: str | None = Field(None, description="team or user; none: the key's own")
    mode: Literal["offline", "online"] = Field(
        "offline",
        description="offline: written to RUN_DIR/wandb, `wandb sync` sends it later",
    )


class Mlflow(Section):
    """MLflow. What a server asks for comes from the environment (MLFLOW_TRACKING_TOKEN, …)."""

    kind: Literal["mlflow"] = "mlflow"
    uri: str | None = Field(None, description="of a server; none: RUN_DIR/mlflow")
    experiment: str = "sightline"

    @field_validator("uri")
    @classmethod
    def _without_credentials(cls, uri: str | None) -> str | None:
        # The config stands in the run's folder, on its page, and in the other trackers.
        parts = urlsplit(uri or "")
        if parts.username or parts.password:
            raise ValueError(
                "expected an address without user and password; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            )
        return uri


class Trackio(Section):
    """trackio, which keeps everything on this machine."""

    kind: Literal["trackio"] = "trackio"
    project: str = "sightline"
    dir: PathOnDisk | None = Field(
        None,
        description="where `TRACKIO_DIR=… trackio show` finds it; none: RUN_DIR/trackio",
    )


TrackerConfig: TypeAlias = Annotated[
    Annotated[Wandb, Tag("wandb")]
    | Annotated[Mlflow, Tag("mlflow")]
    | Annotated[Trackio, Tag("trackio")],
    by_kind("wandb"),
]
"""Every entry of `tracking.trackers` says its kind, so the default of `by_kind` is never used there."""


class Tracking(Section):
    """Trackers, several at once. TensorBoard files are written in any case."""

    trackers: tuple[TrackerConfig, ...] = Field(
        (),
        description='by kind: wandb, mlflow, trackio; a bare name such as "wandb" takes the defaults of its kind',
    )
    completions: int = Field(
        8,
        ge=0,
        description="rows of the table of completions, with their pictures; 0: none",
    )
    interval: int = Field(25, ge=1, description="learner steps between such tables")

    @field_validator("trackers", mode="before")
    @classmethod
    def _expand_bare_names(cls, values: Any) -> Any:
        return expand_bare_kinds(values, "tracker", "wandb")

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: tuple[TrackerConfig, ...]) -> Any:
        kinds = [tracker.kind for tracker in trackers]
        if len(set(kinds)) < len(kinds):
            raise ValueError(
                f"expected every kind of tracker once, got {', '.join(kinds)}; leave one out"
            )
        return trackers
