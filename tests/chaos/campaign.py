"""Many trials: `python -m tests.chaos.campaign --runs 12 --seed 0 --nodes 1 2 --out report.jsonl`.

Prints a line of JSON for every trial, and the sum of all as the last line. Exit status 1 when anything was lost,
trained twice or left behind.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.trial import Report, Trial
from tests.cluster.runtime.job_cluster import JobCluster

CPUS_PER_NODE = 4


def trials(
    seeds: Sequence[int],
    num_nodes: int,
    num_faults: int,
    folder: Path,
    only: frozenset[str] | None,
    shares_cluster: bool,
) -> Iterator[Report]:
    """One trial after another; those on two nodes share a cluster, others where they shall."""
    with ExitStack() as stack:
        cluster = None
        if num_nodes == 2 or shares_cluster:
            nodes = JobCluster(True, num_nodes, CPUS_PER_NODE)
            cluster = stack.enter_context(nodes)
        for seed in seeds:
            yield Trial(seed, folder, num_faults, cluster, only).run()


def summary(reports: Sequence[Report]) -> dict[str, object]:
    """The sum of all trials."""
    faults: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for report in reports:
        faults += report.faults
        ends += report.ends
    violations = [report for report in reports if report.violations]
    return {
        "trials": len(reports),
        "faults": faults.total(),
        "by_kind": dict(faults.most_common()),
        "starts": sum(report.starts for report in reports),
        "restarts_inside": sum(report.restarts for report in reports),
        "ends": dict(ends.most_common()),
        "violated": {report.seed: report.violations for report in violations},
    }


def main() -> int:
    """Exit status 1 when a trial went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.campaign", description=__doc__
    )
    parser.add_argument("--runs", type=int, default=10, help="for every --nodes")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--nodes", type=int, nargs="+", choices=(1, 2), default=[1])
    parser.add_argument("--faults", type=int, default=12, help="of a run, at most")
    parser.add_argument(
        "--only", nargs="+", help="kinds of faults, as reports name them"
    )
    parser.add_argument("--out", type=Path, help="takes the lines, too")
    parser.add_argument("--folder", type=Path, help="keeps the logs of the runs")
    parser.add_argument(
        "--shared",
        action="store_true",
        help="runs on one node share a cluster; else every start of a controller starts its own, which takes longer",
    )
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    only = frozenset(arguments.only) if arguments.only else None
    reports = []
    seed = arguments.seed
    for num_nodes in arguments.nodes:
        seeds = range(seed, seed + arguments.runs)
        seed += arguments.runs
        for report in trials(
            seeds, num_nodes, arguments.faults, folder, only, arguments.shared
        ):
            reports.append(report)
            _tell(report.line(), arguments.out)
    total = summary(reports)
    _tell(json.dumps(total), arguments.out)
    return 1 if total["violated"] else 0


def _tell(line: str, out: Path | None) -> None:
    print(line, flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
