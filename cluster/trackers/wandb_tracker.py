"""Weights & Biases: one run for a run directory, which a resume goes on with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.trackers.base import HEADS, Row
from common.config.evaluation import Wandb


class WandbTracker:
    """Logs by `step`, so that steps which a resume repeats may come again."""

    def __init__(
        self, settings: Wandb, run_dir: Path, run_id: str, config: Mapping[str, Any]
    ) -> None:
        # Else the pictures of an offline run would wait in the home folder.
        os.environ.setdefault("WANDB_DATA_DIR", str(run_dir / "wandb"))
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            dir=str(run_dir),
            id=run_id,
            name=run_dir.name,
            resume="allow",
            config=dict(config),
            # Our terminal is ours: it neither captures nor writes.
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def completions(self, step: int, rows: Sequence[Row]) -> None:
        table = self._wandb.Table(columns=list(HEADS))
        for row in rows:
            table.add_data(*row.cells(self._wandb.Image))
        self._run.log({"step": step, "completions": table})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
