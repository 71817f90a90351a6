"""Run directories written by hand, of any size, for the tests of the run page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image, ImageDraw

from common.config.overrides import load_config
from common.data.datasets import write_table
from common.data.images import ImageStore
from common.data.rows import PAIR_SCHEMA, pair_row
from common.records import (
    ImageRef,
    Message,
    Part,
    PreferencePair,
    Prompt,
    Response,
)

BEGAN = 1_700_000_000.0
PER_STEP = 4
COLOURS = ("red", "blue", "green", "orange")
HOSTILE = (
    '<img src="x" onerror="window.hacked=1"></script><script>window.hacked=1</script>'
    "<b>bold</b> \u2028 &lt; {{ 7*7 }} ' \" `"
)


def write_run(
    folder: Path, num_pairs: int = 40, texts: Sequence[str] = (), num_pictures: int = 4
) -> Path:
    """A finished run: every fourth group is a tie, every step trains `PER_STEP` pairs.

    Args:
        texts: rejected answers, in turn; for none each pair has its number in its answers.
    """
    folder.mkdir(parents=True)
    config = load_config(
        None,
        ["--mixture.online_fraction=1", f"--learner.num_steps={num_pairs // PER_STEP}"],
    )
    (folder / "config.json").write_text(config.model_dump_json())
    refs = _pictures(folder, num_pictures)
    lines = [json.dumps(event) for event in _events(num_pairs, texts, refs)]
    (folder / "journal").mkdir()
    (folder / "journal" / "events.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "metrics.jsonl").write_text("".join(_metrics(num_pairs // PER_STEP)))
    _write_pairs(folder, refs)
    return folder


def _pictures(folder: Path, count: int) -> list[ImageRef]:
    store = ImageStore(folder / "pairs" / "images")
    refs: list[ImageRef] = []
    for number in range(count):
        image = Image.new("RGB", (96, 72), COLOURS[number % len(COLOURS)])
        ImageDraw.Draw(image).text((10, 10), str(number), "black")
        refs.append(store.add(image))
    return refs


def _events(
    num_pairs: int, texts: Sequence[str], refs: Sequence[ImageRef]
) -> Iterator[dict[str, Any]]:
    yield {"event": "data", "time": BEGAN, "prompts": 9, "offline": 0, "dropped": {}}
    yield {"event": "start", "time": BEGAN, "workers": []}
    waiting: list[str] = []
    step = 0
    for number in range(num_pairs):
        at = BEGAN + number
        yield work_event("rollout/0", "sample", at, 0.5)
        yield work_event("reward/0", "judge", at, 0.25)
        if number % 4 == 3:
            yield _group(number, refs, at, ["the same"] * 2, [1.0, 1.0], "tie")
        rejected = texts[number % len(texts)] if texts else f"A blue cat {number}."
        answers = [f"A red dog {number}.", rejected]
        yield _group(number, refs, at, answers, [1.0, -number / 10], "pair")
        waiting.append(_id(number))
        if len(waiting) == PER_STEP:
            step += 1
            yield work_event("learner", "train", at, 0.1)
            yield _of_step(step, at, waiting)
            yield {"event": "publish", "time": at, "version": step, "probe_error": []}
            waiting = []
    last = BEGAN + num_pairs
    scores = {"suite": "shapes", "chair_i": 0.25, "intervals": {"chair_i": [0.2, 0.3]}}
    yield {"event": "validation", "time": last, "step": step, "dropped": {}, **scores}
    yield {"event": "picked", "time": last, "step": step, "by": "validation"}
    yield {"event": "ended", "time": last, "status": 0, "why": ""}


def _group(
    number: int,
    refs: Sequence[ImageRef],
    at: float,
    answers: Sequence[str],
    scores: Sequence[float],
    outcome: str,
) -> dict[str, Any]:
    ref = refs[number % len(refs)]
    group = {
        "event": "group",
        "time": at,
        "id": _id(number) if outcome == "pair" else f"1:{number}",
        "source": "online" if number % 2 else "rloo",
        "prompt": f"prompt/{number % len(refs)}",
        "images": [ref.sha256],
        "completions": list(answers),
        "weight_versions": [number // PER_STEP] * len(answers),
        "verdict": list(scores),
        "notes": [f"note {number}"] * len(answers),
        "chosen": [0] if outcome == "pair" else [],
        "rejected": [1] if outcome == "pair" else [],
        "outcome": outcome,
    }
    if outcome == "pair":
        return {**group, "scores": list(scores)}
    return {**group, "detail": "scores 1 to 1"}


def _id(number: int) -> str:
    return f"0:prompt/{number}"


def _of_step(step: int, at: float, pairs: Sequence[str]) -> dict[str, Any]:
    return {
        "event": "step",
        "time": at,
        "step": step,
        "version": step - 1,
        "pairs": list(pairs),
        "online": len(pairs),
    }


def work_event(who: str, what: str, end: float, seconds: float) -> dict[str, Any]:
    """A call to a worker."""
    return {
        "event": "work",
        "time": end,
        "who": who,
        "what": what,
        "seconds": seconds,
        "count": 1,
    }


def _metrics(num_steps: int) -> Iterator[str]:
    for step in range(1, num_steps + 1):
        values = {
            "step": step,
            "loss": 0.7 / step,
            "loss/online": 0.6 / step,
            "rewards/margins": step / 100,
            "rewards/accuracies": 0.5,
            "staleness/mean": 1.0,
            "weights/probe_abs": 1e-6,
            "grounding/gain": 0.1,
            "time/wait_s": 1.0,
            "time/step_s": 3.0,
            "pairs/dropped/tie": float(step),
        }
        yield json.dumps(values) + "\n"


def _write_pairs(folder: Path, refs: Sequence[ImageRef]) -> None:
    """One pair of every prompt: the page takes questions from them."""
    store = ImageStore(folder / "pairs" / "images")
    rows: list[dict[str, Any]] = []
    for number, ref in enumerate(refs):
        question = Part("text", f"What is in picture {number}?")
        message = Message("user", (Part("image"), question))
        prompt = Prompt(f"prompt/{number}", (message,), (ref,))
        pair = PreferencePair(
            _id(number), prompt, Response("a"), Response("b"), "online"
        )
        rows.append(pair_row(pair, store))
    table = pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)
    write_table(folder / "pairs" / "step_000001.parquet", table)


def data_of(folder: Path, name: str) -> Any:
    """What a data file of a page on disk hands over."""
    script = (folder / "data" / f"{name}.js").read_text(encoding="ascii")
    head = f'receive("{name}", '
    assert script.startswith(head) and script.endswith(");\n")
    return json.loads(script[len(head) : -3])
