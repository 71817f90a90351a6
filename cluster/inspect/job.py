"""Reads a pair set and says what it is made of: one HTML page, and the same figures as JSON beside it.

    python -m cluster.import_data inspect data/povid --policy shapes

The text is read in one pass in bounded memory; the policy looks at `--policy-count` pairs evenly spread over the set.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cluster.inspect.page import Sample
    from common.config.jobs import InspectSettings
    from common.data.anatomy import Figures
    from common.records import Dropped, PreferencePair
    from learner.anatomy_logps import Measured

MARKS = {"warning": "!", "note": "·", "good": "✓"}
LEAST = {"count": 1, "samples": 0, "policy_count": 1, "batch": 1, "max_length": 16}
"""The least value of each number among the arguments."""


def run(arguments: InspectSettings) -> None:
    """Write the page and its JSON, and print the verdicts.

    Raises:
        UserError: an argument or the set is wrong.
    """
    check(arguments)

    # Heavy imports wait until the arguments are known to be right.
    from cluster.inspect.page import render_page
    from cluster.inspect.verdicts import verdicts
    from common.data.datasets import write_json
    from common.paths import replace_file

    figures, pairs = read_set(arguments)
    measured = None
    if arguments.policy is not None:
        figures["policy"], measured = ask_policy(arguments, pairs)
    samples = samples_of(pairs, arguments.samples, measured)
    replace_file(arguments.out, render_page(figures, samples))
    conclusions = verdicts(figures)
    rows = [
        {
            "level": verdict.level,
            "text": verdict.text,
        }
        for verdict in conclusions
    ]
    data = arguments.out.with_suffix(".json")
    write_json(data, {**figures, "verdicts": rows})
    num_pairs, num_rows = figures["num_pairs"], figures["num_rows_read"]
    print(f"{figures['title']}: {num_pairs:,} pairs of {num_rows:,} rows read")
    for verdict in conclusions:
        print(f"  {MARKS[verdict.level]} {verdict.text}")
    print(f"look: {arguments.out}   figures: {data}")


def check(arguments: InspectSettings) -> None:
    """Refuse values that mean nothing and files that cannot be written, before anything is read.

    Raises:
        UserError, OSError: as the command line shows them.
    """
    from common.data.datasets import SPEC, STATS
    from common.errors import UserError
    from common.paths import check_output_file

    for name, least in LEAST.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            raise UserError(
                f"--{flag}: expected at least {least}, got {value}; raise it"
            )
    if arguments.out.suffix == ".json" or arguments.out.is_dir():
        raise UserError(
            f"--out: expected a file name such as inspect.html, got {arguments.out}; "
            "name the page"
        )
    data = arguments.out.with_suffix(".json")
    if data.name in (SPEC, STATS):
        raise UserError(
            f"--out: expected another name, because the figures would replace {data.name} of a set, "
            f"got {arguments.out}; name the page otherwise"
        )
    for output in (arguments.out, data):
        check_output_file(output)


def read_set(arguments: InspectSettings) -> tuple[Figures, list[PreferencePair]]:
    """Read the rows in one pass: the figures, and evenly spread pairs for the policy and as samples.

    Rows that are no pair are counted under their reasons.

    Raises:
        UserError: the set cannot be read, or all of its rows are no pairs.
    """
    from cluster.progress import ProgressReport
    from common.data.anatomy import Anatomy, drop_counts, evenly
    from common.data.datasets import count_pairs, iter_pairs
    from common.errors import UserError
    from common.row_faults import drop_report

    total = count_pairs(arguments.directory)
    rows = frozenset(evenly(total, arguments.count))
    num_wanted = arguments.samples
    if arguments.policy:
        num_wanted = max(num_wanted, arguments.policy_count)
    wanted = evenly(len(rows), num_wanted)
    dropped: list[Dropped] = []
    kept: list[PreferencePair] = []
    anatomy = Anatomy()
    with ProgressReport("reading", len(rows)) as progress:
        for pair in iter_pairs(arguments.directory, dropped, rows):
            # Rows that are no pair never reach this loop but count as read.
            place = anatomy.num_pairs + len(dropped)
            if place in wanted:
                kept.append(pair)
            anatomy.add(pair)
            progress.advance()
    if dropped and not anatomy.num_pairs:
        raise UserError(
            f"{arguments.directory}: expected rows that are pairs, got none of {len(rows)}; dropped "
            f"{drop_report(dropped)}; repair the rows, or import the set again"
        )
    figures = {
        "title": arguments.directory.resolve().name,
        "num_rows": total,
        "num_rows_read": len(rows),
        "dropped_reading": drop_counts(dropped),
        "dropped_making": dropped_making(arguments.directory),
        **anatomy.figures(),
        "policy": None,
    }
    return figures, kept


def dropped_making(directory: Path) -> dict[str, int]:
    """The drop histogram of `stats.json`; empty when the file is missing or no histogram."""
    from common.data.datasets import STATS

    try:
        stats = json.loads((directory / STATS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    counts = stats.get("dropped") if isinstance(stats, dict) else None
    if not isinstance(counts, dict):
        return {}
    histogram = {}
    for reason, count in counts.items():
        if isinstance(count, int):
            histogram[str(reason)] = count
    return histogram


def ask_policy(
    arguments: InspectSettings, pairs: Sequence[PreferencePair]
) -> tuple[Figures, Measured]:
    """Measure log-probs of `--policy-count` of the pairs under the policy, and figures of them.

    Raises:
        UserError: the policy cannot be loaded, or reads none of the pairs.
    """
    from cluster.progress import ProgressReport
    from common.chat import check_model, encoder_of, positions_of
    from common.config import SHAPES_POLICY, Model
    from common.data.anatomy import evenly
    from common.data.images import ImageStore
    from common.errors import UserError
    from common.row_faults import drop_report
    from learner.anatomy_logps import CONDITIONS, measure_conditions, policy_figures
    from learner.batch.collate import Collator
    from learner.model.policy import load_policy

    assert arguments.policy is not None, "asked only where a policy is given"
    path = SHAPES_POLICY if arguments.policy == "shapes" else arguments.policy
    device = device_of(arguments)
    config = Model(
        path=path,
        dtype="float32" if device.type == "cpu" else "bfloat16",
        max_length=arguments.max_length,
    )
    positions = positions_of(encoder_of(config))
    if positions is not None:
        max_length = min(arguments.max_length, positions)
        config = config.model_copy(update={"max_length": max_length})
    collator = Collator(check_model(config))
    policy = load_policy(config, path).to(device).eval()
    places = sorted(evenly(len(pairs), arguments.policy_count))
    asked = [pairs[place] for place in places]
    num_forwards = len(CONDITIONS) * len(asked)
    with (
        tempfile.TemporaryDirectory(prefix="sightline-blank-") as folder,
        ProgressReport("log-probs", num_forwards) as progress,
    ):
        measured = measure_conditions(
            policy,
            collator,
            asked,
            ImageStore(Path(folder)),
            arguments.batch,
            progress.advance,
        )
    if asked and not measured.logps["image"]:
        raise UserError(
            f"--policy {arguments.policy}: expected pairs that the policy can read, got none of {len(asked)}; dropped "
            f"{drop_report(measured.dropped['image'])}; repair the rows, or take another policy"
        )
    figures = {
        "name": arguments.policy,
        "num_asked": len(asked),
        **policy_figures(measured),
    }
    return figures, measured


def device_of(arguments: InspectSettings) -> torch.device:
    """The device of `--device`; by default CUDA where there is one.

    Raises:
        UserError: this machine has no such device.
    """
    import torch

    from common.errors import UserError

    default = "cuda" if torch.cuda.is_available() else "cpu"
    name = arguments.device or default
    try:
        # A name can be valid although the device is missing: only an allocation tells.
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--device: expected a device of this machine, got {name}: {reason}; "
            "choose another"
        ) from error


def samples_of(
    pairs: Sequence[PreferencePair], count: int, measured: Measured | None
) -> list[Sample]:
    """Pick evenly spread pairs and show them with what the policy says of them."""
    from cluster.inspect.page import sample_of
    from common.data.anatomy import evenly

    samples = []
    for place in sorted(evenly(len(pairs), count)):
        pair = pairs[place]
        samples.append(sample_of(pair, notes_of(pair.id, measured)))
    return samples


def notes_of(pair_id: str, measured: Measured | None) -> tuple[str, str, str]:
    """Lines for chosen, rejected and both: log-probs with the pair's image, and the margins of all views."""
    if measured is None:
        return "", "", ""
    logps = measured.logps["image"].get(pair_id)
    if logps is None:
        for drop in measured.dropped["image"]:
            if drop.id == pair_id:
                return "", "", f"not measured: {drop.reason}"
        return "", "", ""
    margins = []
    for view, logps_by_id in measured.logps.items():
        if pair_id in logps_by_id:
            seen = logps_by_id[pair_id]
            name = view.replace("_", " ")
            margins.append(f"{name} {seen.chosen - seen.rejected:+.1f}")
    per_token = logps.both("per_token")
    return (
        _side_note(logps.chosen_tokens, logps.chosen, per_token[0]),
        _side_note(logps.rejected_tokens, logps.rejected, per_token[1]),
        f"log-prob margin: {', '.join(margins)}",
    )


def _side_note(num_tokens: int, total: float, per_token: float) -> str:
    return f"{num_tokens} tokens · log-prob {total:.1f}, {per_token:.2f} per token"
