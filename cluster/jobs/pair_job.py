"""What the jobs that generate pairs do alike: a resumable set, its prompts, and the report at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from cluster.jobs.prompt_source import load_prompts
from common.config.jobs import GenerateConfig
from common.data.pair_writer import PairWriter
from common.end_marks import without_end_mark
from common.errors import UserError
from common.records import Dropped, Prompt
from common.row_faults import drop_report

Stats: TypeAlias = dict[str, Any]
MakePairs: TypeAlias = Callable[
    [PairWriter, Sequence[Prompt], Sequence[Dropped]], Stats
]
"""Does the prompts that have no note yet; gets the rows that are no prompt too. Returns the statistics of the set."""


def make_pair_set(
    config: GenerateConfig,
    spec: Mapping[str, Any],
    make_pairs: MakePairs,
    print_stats: Callable[[Stats], None],
    strip: Callable[[str], str] = without_end_mark,
) -> None:
    """Make the set, or what is missing of it, and print how it went.

    Args:
        strip: takes written-out end marks off a reference, which becomes an answer of the set.

    Raises:
        UserError: as `PairWriter`; or there is no row, or every row was dropped.
    """
    out = config.generate.out
    with PairWriter(out, spec) as writer:
        if writer.complete:
            print(f"{out}: already complete, {writer.num_finished} pairs")
            return
        unreadable: list[Dropped] = []
        prompts, num_end_marks = load_prompts(config, writer.store, unreadable, strip)
        stats = make_pairs(writer, prompts, unreadable)
        if num_end_marks:
            stats["num_end_marks"] = num_end_marks
        _check_pairs(writer, stats, unreadable)
        # Pairs are put in the order of their prompts, whatever order they were made in.
        order = [prompt.id for prompt in prompts]
        writer.finish(stats, order)
    print_stats(stats)
    if num_end_marks:
        print(
            f"took ends of turns that were written out, such as </s>, off {num_end_marks} references"
        )
    print(f"{out}: {stats['num_pairs']} pairs")


def _check_pairs(
    writer: PairWriter, stats: Stats, unreadable: Sequence[Dropped]
) -> None:
    """Refuse (UserError) a set without a pair, whatever its rows fell to."""
    if stats["num_pairs"]:
        return
    dropped = list(unreadable)
    for note in writer.notes:
        if note["dropped"] is not None:
            detail = note.get("detail") or ""
            dropped.append(Dropped(note["id"], note["dropped"], detail))
    # Nothing is lost: the corrected command may use the folder, whatever its settings.
    writer.discard()
    raise UserError(
        f"{writer.directory}: expected at least one pair, got none of {len(dropped)} rows; dropped "
        f"{drop_report(dropped)}; correct the rows or the settings and run this again"
    )
