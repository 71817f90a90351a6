"""The table of docs/models.md, made from the cases: `python -m tests.families.table` prints it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.families.case import Case
from tests.families.cases import CASES

HEADER = (
    "family",
    "engine and transformers differ by",
    "learner's forward",
    "frozen vision side",
    "image tokens left out (BDHS)",
    "remark",
)


def table(cases: Sequence[Case] = CASES) -> str:
    """Markdown, a row for each family."""
    lines = [_line(HEADER), _line(["---"] * len(HEADER))]
    lines += [_line(_cells(case)) for case in cases]
    return "\n".join(lines)


def _cells(case: Case) -> list[str]:
    difference = f"≤ {case.engine_tolerance:g} in {case.engine_dtype}"
    if not case.runs_on_cpu:
        difference = "not measured: needs a GPU"
    is_tree = case.rows_because is None
    return [
        case.title,
        difference,
        "tree" if is_tree else f"rows: {case.rows_because}",
        "once for policy and reference" if is_tree else "once for each model",
        "yes" if case.is_shortened else "no",
        case.remark,
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


if __name__ == "__main__":
    print(table())
