"""trackio: a database on this machine, which `trackio show` opens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.trackers.base import HEADS, Row
from common.config.evaluation import Trackio


class TrackioTracker:
    """Writes to one run of a project."""

    def __init__(
        self, settings: Trackio, run_dir: Path, run_id: str, config: Mapping[str, Any]
    ) -> None:
        # It reads the variable when it is imported.
        folder = settings.dir or run_dir / "trackio"
        os.environ.setdefault("TRACKIO_DIR", str(folder.resolve()))
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            project=settings.project,
            name=f"{run_dir.name}-{run_id[:6]}",
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def completions(self, step: int, rows: Sequence[Row]) -> None:
        import pandas

        lines: list[dict[str, Any]] = []
        for row in rows:
            cells = row.cells(self._trackio.Image)
            lines.append(dict(zip(HEADS, cells, strict=True)))
        table = self._trackio.Table(dataframe=pandas.DataFrame(lines))
        self._run.log({"completions": table}, step=step)

    def close(self, failed: bool) -> None:
        # It knows no end of a run but a good one.
        if failed:
            level = self._trackio.AlertLevel.ERROR
            self._run.alert("the run failed", level=level)
        self._run.finish()
