"""Everything the controller must remember of a run: one record, saved and restored as a whole."""

from __future__ import annotations

import json
from collections import Counter

from pydantic import BaseModel, ConfigDict, Field

from cluster.sampling.prompt_sampler import SamplerState
from cluster.sampling.replay import BufferState, OfflineState


class RunState(BaseModel):
    """The state of the loop and of its parts, which they advance in place.

    What runs at the moment is not part of it: groups in flight come again after a resume.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    step: int
    """Learner steps done."""
    version: int
    """The weight version that the engines hold."""
    best_step: int | None
    """The checkpoint that validation picked so far."""
    best_score: float
    trained: bool = False
    """Whether any step has changed the weights."""
    # `frontier` is the name in state.json since the first runs; they must stay resumable.
    sampler: SamplerState = Field(
        validation_alias="frontier", serialization_alias="frontier"
    )
    buffer: BufferState
    accepted: Counter[str]
    """Online pairs trained or waiting, by source."""
    drops: Counter[str]
    """Groups and pairs that were not used, by reason."""

    @classmethod
    def fresh(cls, num_offline: int) -> RunState:
        """The state of a run that has not begun; `num_offline` is the size of its offline set."""
        return cls(
            step=0,
            version=0,
            best_step=None,
            best_score=-1.0,
            sampler=SamplerState(),
            buffer=BufferState(OfflineState(num_offline)),
            accepted=Counter(),
            drops=Counter(),
        )

    def note_score(self, step: int, score: float | None) -> bool:
        """Make the checkpoint of this step the best one if it is; returns whether it is.

        `score` is None when nothing was measured.
        """
        # Of equal scores the later one wins: it has trained longer. A run without
        # any score takes its last checkpoint.
        never_scored = self.best_score < 0
        is_best = never_scored if score is None else score >= self.best_score
        if is_best:
            self.best_step = step
        if is_best and score is not None:
            self.best_score = score
        return is_best

    def to_json(self) -> str:
        """The content of state.json; `model_validate` reads it back, once parsed."""
        return json.dumps(self.model_dump(mode="json", by_alias=True))
