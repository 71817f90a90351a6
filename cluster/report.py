"""What a finished run came to, for the terminal: `python -m cluster.report RUN_DIR`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.entry import exit_status, expand_paths
from common.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from reward.suites.scorecard import Scorecard


def print_report(run_dir: Path) -> None:
    """The scorecard before and after as a table, and where to look further.

    Raises:
        UserError: the directory holds no finished run.
    """
    from reward.suites.scorecard import Scorecard

    path = run_dir / "scorecard.json"
    cards: dict[str, Scorecard] = {}
    try:
        content = json.loads(path.read_text())
        for name in ("baseline", "final"):
            cards[name] = Scorecard.model_validate(content[name])
    except (OSError, ValueError, KeyError) as error:
        # pydantic's message has several lines; the first says what is wrong.
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: expected the scorecard of a finished run, got {reason}; resume the run"
        ) from error
    print_scorecards(cards)
    samples = run_dir / "samples.html"
    curves = f"curves: tensorboard --logdir {run_dir / 'tensorboard'}"
    # A run without suites has nothing to show.
    if samples.exists():
        print(f"look: {samples}   {curves}")
    else:
        print(curves)
    print(f"policy: {run_dir / 'policy'}   (transformers and `vllm serve` load it)")


def print_scorecards(cards: Mapping[str, Scorecard]) -> None:
    """A table per suite with one column per policy, values with their 95 % intervals, and the grounding gate."""
    from rich.console import Console

    from cluster.evaluation.score_table import (
        grounding_lines,
        harm_lines,
        missing_lines,
        suite_names,
    )

    console = Console()
    names = suite_names(list(cards.values()))
    for name in names:
        if len(names) > 1:
            console.print(name, style="bold")
        console.print(_table(cards, name))
    if not names:
        console.print("no suite measured the policy: evaluation.suites is empty")
    for policy, card in cards.items():
        for suite_card in card.suites.values():
            if suite_card.dropped:
                console.print(f"{policy}: not counted {suite_card.dropped}")
    # One line in a log as well.
    unwrapped = Console(soft_wrap=True)
    for policy, card in cards.items():
        lines: list[tuple[str, str | None]] = []
        for line in missing_lines(card):
            lines.append((line, None))
        for line, is_warning in grounding_lines(card):
            lines.append((line, "bold yellow" if is_warning else None))
        for line in harm_lines(card):
            lines.append((line, "bold red"))
        for line, style in lines:
            # Brackets in it are no markup.
            unwrapped.print(f"{policy}: {line}", style=style, markup=False)


def write_scorecards(path: Path, cards: Mapping[str, Scorecard]) -> None:
    """JSON: policy name -> scorecard."""
    from common.paths import replace_file

    content = {name: card.model_dump(mode="json") for name, card in cards.items()}
    replace_file(path, json.dumps(content, indent=2) + "\n")


def _table(cards: Mapping[str, Scorecard], suite: str) -> Table:
    from rich.table import Table

    from cluster.evaluation.score_table import metric_rows

    table = Table(
        "metric",
        *cards,
        "",
        box=None,
        pad_edge=False,
        padding=(0, 3, 0, 0),
    )
    for row in metric_rows(list(cards.values()), suite):
        cells = [f"{value}  [dim]{interval}[/dim]" for value, interval in row.cells]
        hint = f"{row.better} is better" if row.better else ""
        table.add_row(row.label, *cells, hint)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report of a run; exit status as cluster.entry says."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.report", description=__doc__
    )
    parser.add_argument("run_dir", type=Path)
    options = parser.parse_args(arguments)

    def call() -> None:
        expand_paths(options)
        print_report(options.run_dir)

    return exit_status(call, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
