"""Everything the controller must remember of a run: one record, saved and restored as a whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.checkpoints.config_changes import changes
from cluster.sampling.offline_pool import OfflineState
from cluster.sampling.prompt_sampler import SamplerState
from cluster.sampling.replay import BufferState
from cluster.sampling.worth_sampler import RoundState
from common.evaluation import Score


class RunState(BaseModel):
    """The state of the loop and of its parts, which they advance in place.

    What runs at the moment is not part of it: groups in flight come again after a resume.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    step: int
    """Learner steps done."""
    version: int
    """The weight version that the engines hold."""
    weights: str | None = None
    """The checksum of that version, None before the first publish."""
    best_step: int | None
    """The checkpoint that validation picked so far."""
    best_score: float | None
    """Its score, None when nothing was measured."""
    trained: bool = False
    """Whether any step has changed the weights."""
    # `frontier` is the name in state.json since the first runs; they must stay resumable.
    sampler: SamplerState = Field(
        validation_alias="frontier", serialization_alias="frontier"
    )
    buffer: BufferState
    rounds: RoundState = Field(default_factory=RoundState)
    """Of a run that draws prompts by worth, which has no use for `sampler`."""
    accepted: Counter[str]
    """Online pairs trained or waiting, by source."""
    drops: Counter[str]
    """Groups and pairs that were not used, by reason."""
    evaluation: dict[str, Any] | None = None
    """The config's section that scores are measured by; None in states of earlier versions."""

    @classmethod
    def fresh(cls, num_offline: int) -> RunState:
        """The state of a run that has not begun; `num_offline` is the size of its offline set."""
        return cls(
            step=0,
            version=0,
            best_step=None,
            best_score=None,
            sampler=SamplerState(),
            buffer=BufferState(OfflineState(num_offline)),
            accepted=Counter(),
            drops=Counter(),
        )

    @field_validator("best_score")
    @classmethod
    def _none_was_minus_one(cls, score: float | None) -> float | None:
        # In the state.json of earlier runs, whose scores were shares.
        return None if score == -1 else score

    def measure_by(self, evaluation: Mapping[str, Any]) -> list[str]:
        """Measure by this section of the config from now on. A best score that others cannot beat by it is forgotten.

        Its checkpoint stays the best one until another has a score.

        Returns:
            Keys that have changed since that score was measured; [] when it still holds.
        """
        before = self.evaluation
        self.evaluation = dict(evaluation)
        if before is None or self.best_score is None:
            return []
        keys: list[str] = []
        for change in changes({"evaluation": before}, {"evaluation": evaluation}):
            if change.is_of_validation:
                keys.append(change.key)
        if keys:
            self.best_score = None
        return keys

    def note_score(self, step: int, score: Score | None) -> bool:
        """Make the checkpoint of this step the best one if it is; returns whether it is.

        `score` is None when nothing was measured.
        """
        # Of equal scores the earlier one stays: what no number tells apart has trained less away from the start. A
        # run without any score takes its last checkpoint.
        if score is None:
            is_best = self.best_score is None
        else:
            is_best = score.beats(self.best_score)
        if is_best:
            self.best_step = step
        if is_best and score is not None:
            self.best_score = score.value
        return is_best

    def to_json(self) -> str:
        """The content of state.json; `model_validate` reads it back, once parsed."""
        return json.dumps(self.model_dump(mode="json", by_alias=True))
