"""MLflow: a server, or a folder below the run directory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.trackers.base import HEADS, Row
from common.config.evaluation import Mlflow

NOT_ALLOWED = re.compile(r"[^\w\-. :/]")
"""Characters that MLflow refuses in names."""
MAX_VALUE = 500
"""Characters of a parameter."""
MAX_METRICS = 1000
MAX_PARAMS = 100
"""Of one call."""


class MlflowTracker:
    """Writes to one MLflow run. Its names and texts are what MLflow's client says of them."""

    def __init__(
        self, settings: Mlflow, run_dir: Path, run_id: str, config: Mapping[str, str]
    ) -> None:
        # Nothing is sent to its makers, and a folder is a store.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # Our terminal is ours.
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        uri = settings.uri or (run_dir / "mlflow").resolve().as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(settings.experiment)
        if known is None:
            experiment = self._client.create_experiment(settings.experiment)
        else:
            experiment = known.experiment_id
        earlier = self._client.search_runs(
            [experiment], f"tags.sightline_run = '{run_id}'", max_results=1
        )
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, "RUNNING")
            return
        tags = {"sightline_run": run_id}
        run = self._client.create_run(experiment, tags=tags, run_name=run_dir.name)
        self._id = run.info.run_id
        params = [Param(key, value[:MAX_VALUE]) for key, value in config.items()]
        for begin in range(0, len(params), MAX_PARAMS):
            part = params[begin : begin + MAX_PARAMS]
            self._client.log_batch(self._id, params=part)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics: list[Any] = []
        for name, value in values.items():
            allowed = NOT_ALLOWED.sub("_", name)
            metrics.append(self._metric(allowed, value, now, step))
        for begin in range(0, len(metrics), MAX_METRICS):
            part = metrics[begin : begin + MAX_METRICS]
            self._client.log_batch(self._id, metrics=part)

    def completions(self, step: int, rows: Sequence[Row]) -> None:
        # It refuses a call whose rows have pictures in part, and puts the rows of several calls into one table.
        pictured = [row for row in rows if row.picture is not None]
        others = [row for row in rows if row.picture is None]
        for part in (pictured, others):
            if part:
                self._log_table(part)

    def _log_table(self, rows: Sequence[Row]) -> None:
        import mlflow

        columns: dict[str, list[Any]] = {head: [] for head in HEADS}
        for row in rows:
            for head, cell in zip(HEADS, row.cells(mlflow.Image), strict=True):
                columns[head].append(cell)
        self._client.log_table(self._id, columns, "completions.json")

    def close(self, failed: bool) -> None:
        status = "FAILED" if failed else "FINISHED"
        self._client.set_terminated(self._id, status)
