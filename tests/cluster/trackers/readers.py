"""What a tracker holds of a run, read by its own library from its own files."""

from __future__ import annotations

import html
import importlib
import json
import math
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADS = ("step", "prompt", "completion", "side", "score", "note", "picture")


@dataclass
class Told:
    """What a tracker holds.

    Attributes:
        values: metric -> [step, value] of every step.
        rows: of all tables of completions, in order of `HEADS`; of the picture whether there is one.
        num_pictures: files of pictures that belong to the rows.
        params: of the config, where the tracker holds it by key.
        status: "finished" or "failed"; "" where the tracker has no word for it.
    """

    values: dict[str, list[list[float]]] = field(default_factory=dict)
    rows: list[list[Any]] = field(default_factory=list)
    num_pictures: int = 0
    params: dict[str, str] = field(default_factory=dict)
    status: str = ""

    def value(self, metric: str, step: float, value: float) -> None:
        """Note a value."""
        self.values.setdefault(metric, []).append([step, value])

    def row(self, cells: Sequence[Any]) -> None:
        """Note a line of a table."""
        step, *said, score, note, picture = cells
        has_score = score not in (None, "") and not math.isnan(float(score))
        number = float(score) if has_score else None
        has_picture = picture not in (None, "")
        self.rows.append([int(step), *said, number, note, has_picture])


def of_tensorboard(run_dir: Path) -> Told:
    from tensorboard.backend.event_processing import event_accumulator

    board = event_accumulator.EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    told = Told()
    tags = board.Tags()
    for name in tags["scalars"]:
        for scalar in board.Scalars(name):
            told.value(name, scalar.step, scalar.value)
    for event in board.Tensors("completions/text_summary"):
        table = event.tensor_proto.string_val[0].decode()
        # Text is text there, too.
        assert "<b>" not in table
        for line in table.splitlines()[2:]:
            cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
            told.row([html.unescape(cell) for cell in cells])
    told.num_pictures = sum(len(board.Images(tag)) for tag in tags["images"])
    return told


def of_wandb(run_dir: Path) -> Told:
    """An offline run has a folder for every start. Its service is a process of its own, which may still write."""
    told = Told()
    for folder in sorted((run_dir / "wandb").glob("offline-run-*")):
        (log,) = folder.glob("run-*.wandb")
        for record in _whole_log(log):
            _note_history(told, record.history.item)
            if record.HasField("exit"):
                told.status = "failed" if record.exit.exit_code else "finished"
        for table in folder.glob("files/media/table/*.json"):
            for cells in json.loads(table.read_text())["data"]:
                told.row(cells)
    for file in (run_dir / "wandb").rglob("*"):
        if file.is_file() and file.read_bytes().startswith(b"\x89PNG"):
            told.num_pictures += 1
    return told


def _whole_log(log: Path) -> list[Any]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        records = list(_records(log))
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{log} has no end")


def _note_history(told: Told, items: Sequence[Any]) -> None:
    values: dict[str, Any] = {}
    for item in items:
        name = item.key or ".".join(item.nested_key)
        values[name] = json.loads(item.value_json)
    step = values.pop("step", None)
    for name, value in values.items():
        if isinstance(value, float | int) and not name.startswith("_"):
            told.value(name, step, value)


def _records(log: Path) -> Iterator[Any]:
    """The records of W&B's log, which has LevelDB's format: blocks of 32 KiB, of parts with a header of 7 bytes."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    content = log.read_bytes()
    whole = b""
    place = 7
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, part = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if part in (1, 4):
            yield messages.Record.FromString(whole)
            whole = b""


def of_mlflow(run_dir: Path) -> Told:
    from mlflow import MlflowClient

    client = MlflowClient((run_dir / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("sightline")
    # A resume goes on with the same one.
    (run,) = client.search_runs([experiment.experiment_id])
    told = Told(params=dict(run.data.params), status=run.info.status.lower())
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            told.value(name, metric.step, metric.value)
    folder = Path(client.download_artifacts(run.info.run_id, ""))
    for cells in json.loads((folder / "completions.json").read_text())["data"]:
        told.row(cells)
    told.num_pictures = len(list(folder.rglob("*.png")))
    return told


def of_trackio(run_dir: Path) -> Told:
    from trackio.sqlite_storage import SQLiteStorage

    told = Told(status="finished")
    (run,) = [
        name
        for name in SQLiteStorage.get_runs("sightline")
        if name.startswith(f"{run_dir.name}-")
    ]
    for line in SQLiteStorage.get_logs("sightline", run):
        step = line.pop("step")
        table: Mapping[str, Any] = line.pop("completions", {"_value": ()})
        for row in table["_value"]:
            told.row([row[head] for head in HEADS])
            told.num_pictures += bool(row["picture"])
        for name, value in line.items():
            if name != "timestamp":
                told.value(name, step, value)
    alerts = SQLiteStorage.get_alerts("sightline", run_name=run)
    # It has no word for it. The alert of a start that was resumed stays.
    if any(alert["step"] == step for alert in alerts):
        told.status = "failed"
    return told


READERS: Mapping[str, Callable[[Path], Told]] = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
    "trackio": of_trackio,
}
