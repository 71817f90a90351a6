"""The config trees of the commands beside `train`: a run's tree, and the sections of the job.

A preset of a run is a preset of every job. Overrides may name the keys that a job reads: others would do nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from common.config import PromptFile, RunConfig
from common.config.model import AUTO, auto_length
from common.config.povid import PovidConfig
from common.config.section import PathOnDisk, Section, TextOnDisk

BLOCK_SIZE = 32
"""Tokens per block of the engine's cache. Sentences of an answer begin alike, and whole blocks are computed once."""


class JobConfig(RunConfig):
    """The tree of a job that trains nothing."""

    @model_validator(mode="after")
    def _offline_present(self) -> JobConfig:
        """Accept a mixture without its offline pairs: this replaces the check of a run."""
        return self


class Generate(Section):
    """Where a generated pair set goes."""

    out: PathOnDisk = Field(description="folder of the pair set")


class PovidSettings(PovidConfig):
    """POVID's settings, and what rewrites the answers: `endpoint`, or else `corrupter`."""

    corrupter: Literal["rules"] | None = Field(
        None, description="rules: those of the shapes world, instead of an endpoint"
    )


class GenerateConfig(JobConfig):
    """The tree of `cluster.generate`. Prompts are those of `data.prompts`, seeds follow `run.seed`."""

    generate: Generate
    povid: PovidSettings = PovidSettings()

    job_defaults: ClassVar[dict[str, Any]] = {
        "data": {"prompts": {"kind": "shapes", "count": 1000}},
        "rollout": {"engine": {"block_size": BLOCK_SIZE}},
    }

    @property
    def scene_seed(self) -> int:
        """`data.prompts.seed` where it is set, else the run's."""
        source = self.data.prompts
        if isinstance(source, PromptFile) or "seed" not in source.model_fields_set:
            return self.run.seed
        return source.seed


class BdhsJobConfig(GenerateConfig):
    """The tree of `cluster.generate bdhs`, whose settings are `rollout.bdhs`."""

    keys_read: ClassVar[tuple[str, ...]] = (
        "generate",
        "run.seed",
        "model",
        "data.prompts",
        "data.validation",
        "data.test",
        "data.images",
        "rollout.bdhs",
        "rollout.engine",
        "rollout.num_workers",
        "rollout.deterministic",
        "rollout.num_workers",
        "rollout.num_cpus",
        "rollout.num_gpus",
        "loop.call_timeout_s",
        "cluster",
    )


class PovidJobConfig(GenerateConfig):
    """The tree of `cluster.generate povid`."""

    keys_read: ClassVar[tuple[str, ...]] = (
        "generate",
        "run.seed",
        "data.prompts",
        "data.validation",
        "data.test",
        "data.images",
        "povid",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_rewrite(cls, values: Any) -> Any:
        # Before the sections are checked: an endpoint's missing keys are not the point when there is a corrupter.
        povid = values.get("povid", {}) if isinstance(values, dict) else None
        if isinstance(povid, dict):
            has_endpoint = povid.get("endpoint") is not None
            if has_endpoint == (povid.get("corrupter") is not None):
                raise ValueError(
                    "expected either --endpoint URL --model-name NAME or --corrupter rules; give one of them"
                )
        return values


class ImportSettings(Section):
    """What to import and where to."""

    name: str = Field(description="one of the importers")
    path: PathOnDisk = Field(
        description="the published file, or the folder that holds it"
    )
    out: PathOnDisk = Field(description="folder of the set to make")
    images: PathOnDisk | None = Field(
        None, description="folder that image paths are below; none: that of path"
    )
    strip_prefix: str = Field("", description="cut off the front of image paths")
    split: str | None = Field(
        None,
        description="train, validation, test or all, as file names say it; none: train where there are several",
    )
    count: int | None = Field(None, description="read at most so many rows; none: all")

    @field_validator("count")
    @classmethod
    def _reads_a_row(cls, count: int | None) -> int | None:
        if count is not None and count < 1:
            raise ValueError("expected at least 1")
        return count

    @property
    def image_root(self) -> Path:
        """The folder that image paths are below."""
        if self.images is not None:
            return self.images
        return self.path if self.path.is_dir() else self.path.parent


class ImportConfig(JobConfig):
    """The tree of `cluster.import_data NAME`."""

    import_data: ImportSettings
    keys_read: ClassVar[tuple[str, ...]] = ("import_data",)


class ExportSettings(Section):
    """Which pair set to export, and where to."""

    directory: PathOnDisk = Field(description="folder of a pair set")
    out: PathOnDisk = Field(description="folder to write")


class ExportConfig(JobConfig):
    """The tree of `cluster.import_data export`."""

    export: ExportSettings
    keys_read: ClassVar[tuple[str, ...]] = ("export",)


class InspectSettings(Section):
    """Which pair set to look at, and how closely."""

    directory: PathOnDisk = Field(
        description="folder of a pair set (pairs.parquet, images/)"
    )
    out: PathOnDisk = Field(
        Path("inspect.html"), description="page; figures go beside it as .json"
    )
    count: int | None = Field(
        None, description="read so many rows, evenly spread; none: all"
    )
    samples: int = Field(24, description="pairs shown with their images")
    policy: TextOnDisk | None = Field(
        None, description="also ask this policy: a Hugging Face folder, or shapes"
    )
    policy_count: int = Field(500, description="pairs that the policy reads")
    batch: int = Field(8, description="pairs per forward of the policy")
    max_length: int = Field(
        4096, description="tokens; longer pairs are counted, not measured"
    )
    device: str | None = Field(
        None, description="of the policy, as torch names it; none: cuda if there is one"
    )


class InspectConfig(JobConfig):
    """The tree of `cluster.import_data inspect`."""

    inspect: InspectSettings
    keys_read: ClassVar[tuple[str, ...]] = ("inspect",)


class EvaluateSettings(Section):
    """Which policy to measure, beside which other one, and on what."""

    policy: PathOnDisk = Field(description="Hugging Face folder of the policy")
    baseline: PathOnDisk | None = Field(
        None, description="policy it started from, measured first"
    )
    split: Literal["validation", "test"] = "test"
    scenes: int | None = Field(
        None,
        description="scenes of every suite that has scenes; none: as many as it says",
    )
    out: PathOnDisk | None = Field(
        None,
        description="write the scorecards there as JSON, to scorecard.json in a folder; until then FILE.partial keeps "
        "what is measured, and the same command goes on after a kill",
    )
    samples: PathOnDisk | None = Field(
        None, description="write an HTML page of marked answers there"
    )

    @field_validator("scenes")
    @classmethod
    def _has_a_scene(cls, scenes: int | None) -> int | None:
        if scenes is not None and scenes < 1:
            raise ValueError("expected at least 1")
        return scenes


class EvaluateConfig(JobConfig):
    """The tree of `cluster.evaluate`: what is measured is `evaluation`, as in a run."""

    evaluate: EvaluateSettings
    keys_read: ClassVar[tuple[str, ...]] = (
        "evaluate",
        "evaluation",
        "data.prompts",
        "data.validation",
        "data.test",
        "data.images",
        "run.seed",
        "model.path",
        "model.dtype",
        "model.max_length",
        "rollout.max_tokens",
        "rollout.engine",
        "rollout.deterministic",
        "rollout.num_workers",
        "rollout.num_cpus",
        "rollout.num_gpus",
        "reward.judge",
        "reward.max_retries",
        "reward.num_workers",
        "reward.num_cpus",
        "reward.num_gpus",
        "loop.call_timeout_s",
        "cluster",
    )

    @model_validator(mode="before")
    @classmethod
    def _auto_is_the_policys(cls, values: Any) -> Any:
        """Resolve `model.max_length = "auto"` by the policy that is measured, wherever `model.path` points to."""
        if not isinstance(values, dict):
            return values
        model = values.get("model")
        settings = values.get("evaluate")
        if not isinstance(model, dict) or not isinstance(settings, dict):
            return values
        policy = settings.get("policy")
        if model.get("max_length") != AUTO or policy is None:
            return values
        length = auto_length(str(policy))
        return {**values, "model": {**model, "max_length": length}}


class JudgeTest(Section):
    """The labelled pairs that a judge is measured on."""

    pairs: PathOnDisk = Field(description="folder of a pair set with true labels")
    count: int | None = Field(
        None, ge=1, description="judge so many pairs, evenly spread; none: all"
    )
    blind: bool = Field(
        True, description="judge everything once more with grey pictures"
    )
    cases: int = Field(48, ge=0, description="errors shown on the page")
    out: PathOnDisk | None = Field(None, description="write the figures there as JSON")
    page: PathOnDisk | None = Field(
        None, description="write an HTML page with the errors and their pictures there"
    )


class JudgeJobConfig(JobConfig):
    """The tree of `cluster.evaluate judge`: the judge is `reward.judge`, as in a run."""

    test_judge: JudgeTest
    keys_read: ClassVar[tuple[str, ...]] = (
        "test_judge",
        "reward",
        "evaluation.bootstrap_samples",
        "loop.call_timeout_s",
        "cluster",
    )
