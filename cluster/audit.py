"""Check that a run lost nothing and trained nothing too often: `python -m cluster.audit RUN_DIR`.

Reads the journal, the checkpoints, the pairs and the metrics of a run, finished or not. Every group must have one
outcome in the history that led to the present weights; every accepted pair must be trained once (with
`mixture.online_uses` up to so many times, but never twice in a batch), discarded with a reason, or waiting; and none is
trained when it is older than `loop.max_staleness`. What a resume has overwritten is counted apart. Exit status 1 when
something does not add up.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.entry import command_parser, exit_status, expand_paths

if TYPE_CHECKING:
    from cluster.run.auditing import Audit


def main(arguments: Sequence[str] | None = None) -> int:
    """Status 0 for a run that adds up, 1 for one that does not, 2 for a folder that holds none."""
    parser = command_parser("python -m cluster.audit", __doc__ or "")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--json", action="store_true", help="print the account as one JSON object"
    )
    options = parser.parse_args(arguments)

    def call() -> int:
        from cluster.run.auditing import audit

        expand_paths(options)
        account = audit(options.run_dir)
        if options.json:
            print(json.dumps(dataclasses.asdict(account)))
        else:
            _print(account)
        return 1 if account.faults else 0

    return exit_status(call, "interrupted")


def _print(account: Audit) -> None:
    # Pairs, however often each was trained on.
    trained = account.num_trained_online - account.num_reused
    discarded = account.num_accepted - trained - account.num_waiting
    print(f"started {account.num_starts} times, {account.num_steps:,} steps")
    print(
        f"groups: {account.num_groups:,}, of which pairs came: {account.num_accepted:,}"
    )
    print(
        f"online pairs: {trained:,} trained, {discarded:,} discarded, {account.num_waiting:,} waiting; "
        f"offline pairs trained: {account.num_trained_offline:,}"
    )
    if account.num_reused:
        print(f"online pairs trained once more: {account.num_reused:,} times")
    print(f"not used: {_counts(account.drops)}")
    print(f"overwritten by a resume: {_counts(account.overwritten)}")
    print(f"checkpoints compared: {_listed(account.checkpoints)}")
    for fault in account.faults:
        print(f"FAULT {fault}")
    if not account.faults:
        print("the account is right")


def _counts(counts: Mapping[str, int]) -> str:
    parts = [f"{name} {count:,}" for name, count in counts.items()]
    return ", ".join(parts) or "none"


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(str(step) for step in steps) or "none"


if __name__ == "__main__":
    sys.exit(main())
