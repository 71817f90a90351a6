"""Who judges, and how verdicts become pairs."""

from __future__ import annotations

from pydantic import Field

from common.config.judges import JudgeConfig, RulesJudge
from common.config.section import Gpus, PathOnDisk, Section


class Reward(Section):
    """Judging groups and pairing the best completion with the worst."""

    judge: JudgeConfig = RulesJudge()
    num_workers: int = Field(1, ge=1)
    min_margin: float = Field(
        1e-6, ge=0, description="a group whose scores differ by less is a tie"
    )
    max_retries: int = Field(
        2, ge=0, description="when the judge fails for now; then the group is dropped"
    )
    concurrency: int = Field(
        16,
        ge=1,
        description="groups that a reward worker judges at once; 1 for a judge that is not thread-safe",
    )
    cache: PathOnDisk | None = Field(
        None,
        description="folder of verdicts by the hash of what was judged, shared by runs and workers; none keeps nothing",
    )
    num_cpus: float = Field(0, ge=0)
    num_gpus: Gpus = Field(
        0,
        description="of one reward worker, for a judge whose model runs in it: clip, reward_model",
    )
