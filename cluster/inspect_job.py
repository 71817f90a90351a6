"""Reads a pair set and says what it is made of: one HTML page, and the same figures as JSON beside it.

    python -m cluster.import_data inspect data/povid --policy shapes

The text is read in one pass in bounded memory; the policy looks at `--policy-count` pairs evenly spread over the set.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.inspect_page import Sample
    from common.anatomy import Figures
    from common.job_config import InspectSettings
    from common.records import Dropped, PreferencePair
    from learner.anatomy_logps import Measured

MARKS = {"warning": "!", "note": "·", "good": "✓"}


def run(arguments: InspectSettings) -> None:
    """Write the page and its JSON, and print the verdicts (UserError when an argument or the set is wrong)."""
    check(arguments)

    from cluster.inspect_page import render_page
    from cluster.inspect_verdicts import verdicts
    from common.datasets import write_json
    from common.paths import replace_file

    figures, kept = read_set(arguments)
    measured = None
    if arguments.policy is not None:
        figures["policy"], measured = ask_policy(arguments, kept)
    found = verdicts(figures)
    samples = samples_of(kept, arguments.samples, measured)
    replace_file(arguments.out, render_page(figures, samples))
    data = arguments.out.with_suffix(".json")
    write_json(
        data,
        {
            **figures,
            "verdicts": [
                {"level": verdict.level, "text": verdict.text} for verdict in found
            ],
        },
    )
    print(
        f"{figures['title']}: {figures['num_pairs']:,} pairs of {figures['num_rows_read']:,} rows read"
    )
    for verdict in found:
        print(f"  {MARKS[verdict.level]} {verdict.text}")
    print(f"look: {arguments.out}   figures: {data}")


def check(arguments: InspectSettings) -> None:
    """Refuse values that mean nothing, before anything is read."""
    from common.errors import UserError

    for name, least in (
        ("count", 1),
        ("samples", 0),
        ("policy_count", 1),
        ("batch", 1),
        ("max_length", 16),
    ):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(
                f"--{name.replace('_', '-')}: expected at least {least}, got {value}; raise it"
            )
    if arguments.out.suffix == ".json" or arguments.out.is_dir():
        raise UserError(
            f"--out: expected a file name such as inspect.html, got {arguments.out}; name the page"
        )


def read_set(arguments: InspectSettings) -> tuple[Figures, list[PreferencePair]]:
    """One pass over the rows: the figures, and evenly spread pairs for the policy and as samples.

    Rows that are no pair are counted under their reasons.
    """
    from cluster.progress import ProgressReport
    from common.anatomy import Anatomy, drop_counts, evenly
    from common.datasets import count_pairs, iter_pairs

    total = count_pairs(arguments.directory)
    rows = sorted(evenly(total, arguments.count))
    wanted = max(arguments.samples, arguments.policy_count if arguments.policy else 0)
    keep = evenly(len(rows), wanted)
    dropped: list[Dropped] = []
    counted, kept = Anatomy(), []
    with ProgressReport("reading", len(rows)) as progress:
        for pair in iter_pairs(arguments.directory, dropped, frozenset(rows)):
            # The place of the row among those read; rows that are no pair came in between.
            if counted.num_pairs + len(dropped) in keep:
                kept.append(pair)
            counted.add(pair)
            progress.advance()
    figures = {
        "title": arguments.directory.resolve().name,
        "num_rows": total,
        "num_rows_read": len(rows),
        "dropped_reading": drop_counts(dropped),
        "dropped_making": dropped_making(arguments.directory),
        **counted.figures(),
        "policy": None,
    }
    return figures, kept


def dropped_making(directory: Path) -> dict[str, int]:
    """The drop histogram of `stats.json`; empty when there is none."""
    from common.datasets import STATS

    try:
        found = json.loads((directory / STATS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    counts = found.get("dropped") if isinstance(found, dict) else None
    if not isinstance(counts, dict):
        return {}
    return {
        str(reason): count for reason, count in counts.items() if isinstance(count, int)
    }


def ask_policy(
    arguments: InspectSettings, pairs: Sequence[PreferencePair]
) -> tuple[Figures, Measured]:
    """Log-probs of the policy on `--policy-count` of these pairs, and figures of them."""
    import torch

    from cluster.progress import ProgressReport
    from common.anatomy import evenly
    from common.chat import ChatEncoder
    from common.config import SHAPES_POLICY, Model
    from common.errors import UserError
    from common.images import ImageStore
    from learner.anatomy_logps import VIEWS, measure_views, policy_figures
    from learner.collate import Collator
    from learner.policy import load_policy

    assert arguments.policy is not None, "asked only where a policy is given"
    path = SHAPES_POLICY if arguments.policy == "shapes" else arguments.policy
    name = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        what = str(error).splitlines()[0]
        raise UserError(
            f"--device: expected a device of this machine, got {name}: {what}; choose another"
        ) from error
    config = Model(
        path=path,
        dtype="float32" if device.type == "cpu" else "bfloat16",
        max_length=arguments.max_length,
    )
    collator = Collator(ChatEncoder(path, config.max_length))
    policy = load_policy(config, path).to(device).eval()
    asked = [
        pairs[index] for index in sorted(evenly(len(pairs), arguments.policy_count))
    ]
    with (
        tempfile.TemporaryDirectory(prefix="sightline-blank-") as folder,
        ProgressReport("log-probs", len(VIEWS) * len(asked)) as progress,
    ):
        measured = measure_views(
            policy,
            collator,
            asked,
            ImageStore(Path(folder)),
            arguments.batch,
            progress.advance,
        )
    return {
        "name": arguments.policy,
        "num_asked": len(asked),
        **policy_figures(measured),
    }, measured


def samples_of(
    pairs: Sequence[PreferencePair], count: int, measured: Measured | None
) -> list[Sample]:
    """Evenly spread samples with what the policy says of them."""
    from cluster.inspect_page import sample_of
    from common.anatomy import evenly

    shown = [pairs[index] for index in sorted(evenly(len(pairs), count))]
    return [sample_of(pair, notes_of(pair.id, measured)) for pair in shown]


def notes_of(pair_id: str, measured: Measured | None) -> tuple[str, str, str]:
    """Lines for chosen, rejected and both: log-probs as they are, and the margins of all views."""
    if measured is None:
        return "", "", ""
    own = measured.logps["image"].get(pair_id)
    if own is None:
        why = next(
            (drop.reason for drop in measured.dropped["image"] if drop.id == pair_id),
            "",
        )
        return "", "", f"not measured: {why}" if why else ""
    sides: Any = zip(
        own.both("sum"),
        own.both("per_token"),
        (own.chosen_tokens, own.rejected_tokens),
        strict=True,
    )
    chosen, rejected = (
        f"{num} tokens · log-prob {total:.1f}, {each:.2f} per token"
        for total, each, num in sides
    )
    margins = {
        name: logps[pair_id]
        for name, logps in measured.logps.items()
        if pair_id in logps
    }
    told = ", ".join(
        f"{name.replace('_', ' ')} {value.chosen - value.rejected:+.1f}"
        for name, value in margins.items()
    )
    return chosen, rejected, f"log-prob margin: {told}"
