"""What a finished run came to, for the terminal: `python -m cluster.report RUN_DIR`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.entry import exit_status
from common.errors import UserError


def print_report(run_dir: Path) -> None:
    """The scorecard before and after as a table, and where to look further.

    Raises:
        UserError: the directory holds no finished run.
    """
    from cluster.evaluate import print_scorecards
    from reward.scorecard import Scorecard

    path = run_dir / "scorecard.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected the scorecard of a finished run, got {error}; resume the run"
        ) from error
    print_scorecards(
        {name: Scorecard.model_validate(found[name]) for name in ("baseline", "final")}
    )
    print(
        f"look: {run_dir / 'samples.html'}   curves: tensorboard --logdir {run_dir / 'tensorboard'}"
    )
    print(f"policy: {run_dir / 'policy'}   (transformers and `vllm serve` load it)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report of a run; exit status as cluster.entry says."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.report", description=__doc__
    )
    parser.add_argument("run_dir", type=Path)
    run_dir = parser.parse_args(arguments).run_dir
    return exit_status(lambda: print_report(run_dir), "interrupted")


if __name__ == "__main__":
    sys.exit(main())
