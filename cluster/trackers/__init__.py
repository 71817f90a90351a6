"""Trackers: where a run's metrics and samples of its completions go. One file per kind; each is imported when used.

    Recorder ──metrics of a step, settled groups──▶ Trackers ──queue──▶ a thread ──▶ TensorBoard, wandb, mlflow, …

The names of metrics are those of metrics.jsonl everywhere, which are TRL's where TRL has the metric. Of a tracker that
fails the log says so once; it gets nothing more, and the run goes on.
"""
