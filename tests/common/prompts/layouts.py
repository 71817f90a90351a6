"""Files of prompts about the same pictures, in every layout that people use."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from common.config.data import Data
from common.data.images import ImageStore
from common.data.prompt_sources import Split, load_split
from common.records import Dropped, Prompt

NUM_PICTURES = 6
QUESTION = "What is this?"


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 2 * number, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def plain_rows() -> list[dict[str, Any]]:
    rows = []
    for number in range(NUM_PICTURES):
        row = {
            "image": f"pictures/{number}.png",
            "prompt": QUESTION,
            "answer": f"Number {number}.",
            "label": number,
            "boxes": [[0.5, number]],
        }
        rows.append(row)
    return rows


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(
    path: Path | str, split: Split = "train", **settings: Any
) -> tuple[Sequence[Prompt], list[Dropped]]:
    """The prompts of a path, in a store beside it."""
    dropped: list[Dropped] = []
    data = Data.model_validate({"prompts": str(path), **settings})
    store = ImageStore(Path(path).parent / "store")
    return load_split(data, split, store, dropped), dropped


def with_bytes(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    changed = []
    for row in rows:
        data = (folder / row["image"]).read_bytes()
        changed.append({**row, "image": {"bytes": data, "path": None}})
    return changed


def as_jsonl(folder: Path) -> Path:
    return jsonl(folder / "rows.jsonl", plain_rows())


def as_list(folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(plain_rows()))
    return path


def as_parquet(folder: Path) -> Path:
    table = pa.Table.from_pylist(with_bytes(plain_rows(), folder))
    pq.write_table(table, folder / "rows.parquet", row_group_size=2)
    return folder / "rows.parquet"


def as_saved_folder(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(with_bytes(plain_rows(), folder))
    saved.save_to_disk(folder / "saved")
    return folder / "saved"


def as_image_folder(folder: Path) -> Path:
    rows = []
    for row in plain_rows():
        name = row.pop("image").removeprefix("pictures/")
        rows.append({"file_name": name, **row})
    jsonl(folder / "pictures" / "metadata.jsonl", rows)
    return folder / "pictures"


def as_image_folder_with_csv(folder: Path) -> Path:
    with (folder / "pictures" / "metadata.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "question", "reference", "label", "boxes"])
        for number, row in enumerate(plain_rows()):
            writer.writerow([f"{number}.png", QUESTION, row["answer"], number, ""])
    return folder / "pictures"


def as_chat(folder: Path) -> Path:
    """OpenAI's parts, with the picture as a `data:` URL, and the answer as the last turn."""
    rows = []
    for row in plain_rows():
        data = base64.b64encode((folder / row.pop("image")).read_bytes()).decode()
        url = {"url": f"data:image/png;base64,{data}"}
        parts = [
            {"type": "image_url", "image_url": url},
            {"type": "text", "text": row.pop("prompt")},
        ]
        answer = {"role": "assistant", "content": row.pop("answer")}
        turns = [{"role": "user", "content": parts}, answer]
        rows.append({"messages": turns, **row})
    return jsonl(folder / "chat.jsonl", rows)


def as_conversations(folder: Path) -> Path:
    rows = []
    for row in plain_rows():
        turns = [
            {"from": "human", "value": f"<image>\n{row.pop('prompt')}"},
            {"from": "gpt", "value": row.pop("answer")},
        ]
        rows.append({"images": [row.pop("image")], "conversations": turns, **row})
    return jsonl(folder / "sharegpt.jsonl", rows)


LAYOUTS = (
    as_jsonl,
    as_list,
    as_parquet,
    as_saved_folder,
    as_image_folder,
    as_chat,
    as_conversations,
)
