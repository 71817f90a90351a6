"""Does the numerics gate see what is wrong, and nothing else? `python -m benchmarks.numerics_gate [--pushes 40]`.

A random LLaVA of 42 M parameters in bfloat16, its head scaled until the largest logits are about 20: a policy in this
process, and real vLLM engines. Three parts:

    honest    correct pushes of weights that wander, one after another: how often the gate warns or shuts without cause,
              and what scoring the probe costs
    faults    wrong pushes at several sizes of update: the share of its limit that the gate's worst figure takes
    lora      DPO steps at lr 1e-6 with adapters, pushed alone and merged: KL beside that of the start policy

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.engine.numerics_gate import Mismatch
from benchmarks.gate_faults import (
    FAULTS,
    Pushes,
    disguised,
    kept_caches,
    unchecked_names,
    without_a_layer,
    zeroed,
)
from benchmarks.gate_sides import (
    Push,
    Side,
    Trained,
    answers_of,
    build_policy,
    lora_learner,
    moved,
    probe_bytes,
    start_engine,
)
from common.config import Full, Lora
from common.data.images import ImageStore
from common.model_parts import is_vision_side
from common.paths import replace_file
from common.records import ProbeReading

PARTS = ("honest", "faults", "lora")
WANDERING = 2e-3
"""Of a weight's standard deviation, per honest push."""
UPDATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""The same for the pushes at which faults are tried."""
LORA_STEPS = 20
LORA = Lora(r=16, alpha=32)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and print the figures."""
    options = parse(words)
    with tempfile.TemporaryDirectory() as name:
        result = asyncio.run(measured(Path(name), options))
    if options.out is not None:
        replace_file(options.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.numerics_gate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--pushes", type=int, default=40, help="honest ones")
    parser.add_argument("--updates", type=float, nargs="+", default=UPDATES)
    parser.add_argument("--steps", type=int, default=LORA_STEPS, help="of LoRA")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="of both sides"
    )
    parser.add_argument("--out", type=Path, help="file of the figures")
    return parser.parse_args(words)


async def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The parts that are asked for; one engine takes whole weights, another one adapters."""
    logit = build_policy(folder / "model", options.device)
    answers = answers_of(ImageStore(folder / "images"))
    trained: Trained | None = None
    if "lora" in options.parts:
        store = ImageStore(folder / "images")
        trained = lora_learner(folder, LORA, store, answers, options.device)
        for step in range(options.steps):
            trained.learner.step(step + 1, trained.batch(step))
    result: dict[str, Any] = {"largest_logit": round(logit, 1), "faults": {}}
    result |= await whole_weights(folder, options, answers, trained)
    if trained is not None:
        await adapters(folder, options, answers, trained, result)
    return result


async def whole_weights(
    folder: Path,
    options: argparse.Namespace,
    answers: Any,
    trained: Trained | None,
) -> dict[str, Any]:
    """The parts in which an engine takes whole weights."""
    parts: dict[str, Any] = {}
    engine = start_engine(folder / "model", Full(), options.device)
    try:
        side = Side(folder / "model", Full(), answers, options.device)
        await engine.calibrate(side.start)
        if "honest" in options.parts:
            parts["honest"] = said(await honest(engine, side, options.pushes))
        if "faults" in options.parts:
            parts["faults"] = await faults(engine, side, options.updates)
        if trained is not None:
            side.restore()
            await attempt(engine, side.publish(engine.weight_version + 1))
            parts["lora"] = await lora_merged(engine, trained)
    finally:
        await engine.close()
    return parts


async def adapters(
    folder: Path,
    options: argparse.Namespace,
    answers: Any,
    trained: Trained,
    result: dict[str, Any],
) -> None:
    """The parts in which an engine takes adapters alone, into `result`."""
    engine = start_engine(folder / "model", LORA, options.device)
    try:
        result["lora"] = said({**result["lora"], **await lora_alone(engine, trained)})
        if "faults" in options.parts:
            side = Side(folder / "model", LORA, answers, options.device)
            rows = await dropped_adapter(engine, side, options.updates)
            result["faults"]["dropped adapter"] = said(rows)
    finally:
        await engine.close()


def said(part: Any) -> Any:
    """A part, printed as soon as it is there."""
    print(json.dumps(part), file=sys.stderr, flush=True)
    return part


def figures(reading: ProbeReading) -> dict[str, float]:
    """Of a reading."""
    return {
        "abs_mean": round(reading.abs_mean, 5),
        "abs_worst": round(reading.abs_worst, 5),
        "abs_max": round(reading.abs_max, 4),
        "kl_mean": round(reading.kl_mean, 6),
        "kl_worst": round(reading.kl_worst, 6),
        "kl_max": round(reading.kl_max, 5),
    }


async def attempt(engine: Any, push: Push) -> dict[str, Any]:
    """What the gate says of a push."""
    reading, was_found = await read(engine, push)
    return {"found": was_found, "load": round(reading.load, 2)}


async def read(engine: Any, push: Push) -> tuple[ProbeReading, bool]:
    """How far the engine is from the learner after a push, and whether the gate refuses it."""
    try:
        report = await engine.load_weights(*push)
    except Mismatch as mismatch:
        return mismatch.reading, True
    return report.probe, False


async def honest(engine: Any, side: Side, pushes: int) -> dict[str, Any]:
    """Correct pushes of weights that wander away from the start policy."""
    reports = []
    learner_s: list[float] = []
    for _ in range(pushes):
        side.move(WANDERING)
        begun = time.perf_counter()
        side.probe.now()
        learner_s.append(time.perf_counter() - begun)
        push = side.publish(engine.weight_version + 1)
        reports.append(await engine.load_weights(*push))
    readings = [report.probe for report in reports]
    loads = [reading.load for reading in readings]
    return {
        "pushes": pushes,
        "warned": sum(bool(reading.warning) for reading in readings),
        "largest_load": round(max(loads), 3),
        "mean_load": round(statistics.mean(loads), 3),
        "moved": round(moved(side.start, side.probe.now()), 2),
        "start": figures(await engine.calibrate(side.start)),
        "last": figures(readings[-1]),
        "load_s": round(statistics.median(r.seconds for r in reports), 3),
        "engine_probe_s": round(statistics.median(r.seconds for r in readings), 3),
        "learner_probe_s": round(statistics.median(learner_s), 3),
        "probe_bytes": probe_bytes(side.probe.now()),
    }


async def faults(
    engine: Any, side: Side, updates: Sequence[float]
) -> dict[str, list[dict[str, Any]]]:
    """Every fault at every size of update; the push before it and the one after it are correct."""
    table: dict[str, list[dict[str, Any]]] = {}
    start = side.start_arrays()
    for update in updates:
        side.restore()
        side.move(update)
        before = side.publish(engine.weight_version + 1)
        await attempt(engine, before)
        side.move(update)
        now = side.publish(engine.weight_version + 1)
        change = {"update": update, "moved": round(moved_between(before, now), 4)}
        pushes = Pushes(now[1], before[1], start)
        for name, spoil in FAULTS.items():
            outcome = await attempt(engine, disguised(now, spoil(pushes)))
            table.setdefault(name, []).append({**change, **outcome})
        outcome = await layer_left_out(engine, now)
        table.setdefault("layer left out", []).append({**change, **outcome})
        outcome = await attempt(engine, now)
        table.setdefault("none", []).append({**change, **outcome})
        outcome = await stale_pictures(engine, side, now, update)
        table.setdefault("stale pictures", []).append(outcome)
        said({name: rows[-1] for name, rows in table.items()})
    return table


async def layer_left_out(engine: Any, push: Push) -> dict[str, Any]:
    """A layer that the engine's loader gets no weights of: found by what was loaded, at any size of update."""
    with unchecked_names(engine):
        try:
            await engine.load_weights(*disguised(push, without_a_layer(push[1])))
        except Mismatch as mismatch:
            return {"found": True, "load": round(mismatch.reading.load, 2)}
        except Exception as error:
            return {"found": "keep their old weights" in str(error)}
    return {"found": False}


async def stale_pictures(
    engine: Any, side: Side, before: Push, update: float
) -> dict[str, Any]:
    """The vision side moves, and the engine still has the features of the probe's pictures from the push before."""
    side.move(update, is_vision_side)
    push = side.publish(engine.weight_version + 1)
    with kept_caches(engine):
        outcome = await attempt(engine, push)
    change = round(moved_between(before, push), 4)
    return {"update": update, "moved": change, **outcome}


async def dropped_adapter(
    engine: Any, side: Side, updates: Sequence[float]
) -> list[dict[str, Any]]:
    """Adapters that the engine does not run."""
    rows: list[dict[str, Any]] = []
    for update in updates:
        side.restore()
        start = side.publish(engine.weight_version + 1)
        await attempt(engine, start)
        side.move(update)
        push = side.publish(engine.weight_version + 1)
        outcome = await attempt(engine, disguised(push, zeroed(push[1])))
        change = round(moved_between(start, push), 4)
        rows.append({"update": update, "moved": change, **outcome})
        outcome = await attempt(engine, push)
        assert not outcome["found"], outcome
    return rows


def moved_between(before: Push, now: Push) -> float:
    """Mean |Δ log-prob| at the learner, nats."""
    first, second = before[0].probe, now[0].probe
    assert first is not None
    assert second is not None
    return moved(first, second)


async def lora_merged(engine: Any, trained: Trained) -> dict[str, Any]:
    """The trained adapters, merged into bfloat16 weights."""
    baseline = await engine.calibrate(trained.start)
    push = trained.merged(engine.weight_version + 1)
    reading, was_found = await read(engine, push)
    return {
        "merged_survives": push[0].merged_survives,
        "kl_start_whole": baseline.kl_mean,
        "kl_merged": reading.kl_mean,
        "merged_found": was_found,
    }


async def lora_alone(engine: Any, trained: Trained) -> dict[str, Any]:
    """The adapters alone, beside an adapter of zeros at the start policy."""
    baseline = await engine.calibrate(trained.start)
    manifest, arrays = trained.learner.publish(1)
    assert manifest is not None
    probe = manifest.probe
    assert probe is not None
    report = await engine.load_weights(manifest, arrays)
    reading = report.probe
    return {
        "steps_moved": round(moved(trained.start, probe), 5),
        "kl_start": baseline.kl_mean,
        "kl_alone": reading.kl_mean,
        "kl_ratio": round(reading.kl_mean / baseline.kl_mean, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
