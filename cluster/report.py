"""What runs came to: `python -m cluster.report RUN_DIR`, or several side by side.

One run: its scorecard before and after, and where to look further. `--serve` shows all of it in a browser, while the
run goes on as well; `--page` writes the same as a folder that opens from disk. Several: their scorecards with intervals
and the config keys that differ; `--out FILE.html` adds their curves and writes all of it on one page.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.entry import command_parser, exit_status, expand_paths
from common.errors import UserError
from common.paths import check_output_file

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.evaluation.finished_run import FinishedRun
    from reward.judge_quality import JudgeQuality
    from reward.suites.scorecard import Scorecard


PORT = 8321
"""Where `--serve` answers unless told otherwise."""
DEFAULT_PAGE = Path("RUN_DIR/report")
"""Stands for the folder of whatever run is shown."""
ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}
"""Which direction is better, in one sign."""


def print_report(run_dir: Path) -> None:
    """The scorecard before and after as a table, and in two sentences what changed and where to look.

    Raises:
        UserError: the directory holds no finished run.
    """
    from cluster.evaluation.finished_run import read_run
    from cluster.evaluation.summary import summary

    run = read_run(run_dir)
    print_scorecards(run.cards)
    print_warnings(run.warnings())
    # Plain, so that a path can be taken from it whatever the width.
    print(summary(run))


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


def print_warnings(lines: Sequence[str], label: str = "training") -> None:
    """What a run said of harm while it trained."""
    from rich.console import Console

    # One line in a log as well.
    console = Console(soft_wrap=True)
    for line in lines:
        console.print(f"{label}, {line}", style="yellow", markup=False)


def print_judge_quality(quality: JudgeQuality) -> None:
    """What a judge is worth, as a table."""
    from rich.console import Console
    from rich.table import Table

    from cluster.evaluation.judge_page import quality_rows

    table = Table(f"judge {quality.judge}", "", "95 %", "", box=None, pad_edge=False)
    for row in quality_rows(quality):
        table.add_row(*row)
    console = Console()
    console.print(table)
    line = f"{quality.num_pairs:,} pairs in both orders"
    if quality.seconds_per_pair is not None:
        line += f", {quality.seconds_per_pair:.2f} s a pair"
    if quality.dropped:
        line += f"; not judged {quality.dropped}"
    console.print(line, markup=False)
    if quality.usage:
        console.print(f"asked of servers: {quality.usage}", markup=False)


def write_scorecards(path: Path, cards: Mapping[str, Scorecard]) -> None:
    """JSON: policy name -> scorecard."""
    from common.paths import replace_file

    content = {name: card.model_dump(mode="json") for name, card in cards.items()}
    replace_file(path, json.dumps(content, indent=2) + "\n")


def _table(cards: Mapping[str, Scorecard], suite: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from cluster.evaluation.score_table import metric_rows

    # Many columns fit a terminal only with their intervals below the values and without the last one.
    is_wide = len(cards) > 2
    gap = "\n" if is_wide else "  "
    # Brackets in a run's name are no markup.
    policies = [escape(policy) for policy in cards]
    table = Table(
        "metric",
        *policies,
        *([] if is_wide else [""]),
        box=None,
        pad_edge=False,
        padding=(0, 2 if is_wide else 3, 0, 0),
    )
    for row in metric_rows(list(cards.values()), suite):
        cells = [f"{value}{gap}[dim]{interval}[/dim]" for value, interval in row.cells]
        hint = f"{row.better} is better" if row.better else ""
        if is_wide:
            table.add_row(row.label + ARROWS[row.better], *cells)
        else:
            table.add_row(row.label, *cells, hint)
    return table


def print_comparison(runs: Sequence[FinishedRun]) -> None:
    """Scorecards side by side, and the config keys that differ."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cluster.evaluation.comparison import (
        compared_cards,
        config_differences,
        labels_of,
    )

    print_scorecards(compared_cards(runs))
    for label, run in zip(labels_of(runs), runs, strict=True):
        print_warnings(run.warnings(), f"{label}, training")
    console = Console()
    differences = config_differences(runs)
    if not differences:
        console.print("their configs differ in nothing but the run directory")
        return
    # Brackets in a name or value are no markup.
    labels = [escape(label) for label in labels_of(runs)]
    table = Table("differs", *labels, box=None, pad_edge=False)
    for key, values in differences.items():
        table.add_row(key, *[escape(value) for value in values])
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report of one run, or compare several; exit status as cluster.entry says."""
    parser = command_parser("python -m cluster.report", __doc__ or "")
    parser.add_argument("run_dir", type=Path, nargs="+", metavar="RUN_DIR")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="page of the comparison, with curves"
    )
    _add_page_options(parser)
    options = parser.parse_args(arguments)

    def call() -> None:
        expand_paths(options)
        if options.serve or options.page is not None:
            _show_page(options)
        else:
            _report(options.run_dir, options.out)

    return exit_status(call, "interrupted")


def _add_page_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--serve",
        action="store_true",
        help="show one run in a browser, live; on this machine alone",
    )
    parser.add_argument(
        "--port", type=int, default=PORT, help="of --serve; 0 takes any free one"
    )
    parser.add_argument(
        "--page",
        type=Path,
        nargs="?",
        const=DEFAULT_PAGE,
        metavar="FOLDER",
        help="write the page of one run as a folder that opens from disk (default: RUN_DIR/report)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="RUN_DIR",
        help="of --serve and --page: the run whose config is compared; none: the defaults",
    )


def _show_page(options: Namespace) -> None:
    """Serve the page of one run until Ctrl-C, or write it."""
    if len(options.run_dir) > 1:
        raise UserError(
            f"RUN_DIR: expected one run for --serve and --page, got {len(options.run_dir)}; use --out to compare runs"
        )
    if options.out is not None or (options.serve and options.page is not None):
        raise UserError(
            "--serve, --page, --out: expected one of them, got several; call the command once for each"
        )
    from cluster.run_page.run import RunPage

    (run_dir,) = options.run_dir
    with RunPage(run_dir, options.against) as run:
        if options.page is not None:
            from cluster.run_page.files import write_page

            is_default = options.page == DEFAULT_PAGE
            folder = run_dir / "report" if is_default else options.page
            print(f"look: {write_page(run, folder)}")
            return
        from cluster.run_page.server import PageServer

        with PageServer(run, options.port) as server:
            print(f"look: {server.url}   (Ctrl-C ends it)", flush=True)
            server.wait()


def _report(run_dirs: Sequence[Path], out: Path | None) -> None:
    if out is not None:
        check_output_file(out)
    if len(run_dirs) == 1 and out is None:
        print_report(run_dirs[0])
        return
    from cluster.evaluation.comparison import write_comparison
    from cluster.evaluation.finished_run import read_run

    runs = [read_run(run_dir) for run_dir in run_dirs]
    print_comparison(runs)
    if out is not None:
        write_comparison(out, runs)
        print(f"look: {out}")


if __name__ == "__main__":
    sys.exit(main())
