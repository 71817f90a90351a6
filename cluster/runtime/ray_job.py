"""What is different in a job that was given to Ray (`ray job submit`)."""

from __future__ import annotations

import os
from pathlib import Path

from common.errors import UserError

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the command of a job, and for nothing else."""


def check_output_path(path: Path, key: str) -> None:
    """Refuse (UserError) a relative output of a Ray job.

    A job runs in a copy of its working directory that Ray deletes; every node has another one. Paths that are only
    read may be relative: all copies hold the same files.
    """
    if JOB_VARIABLE in os.environ and not path.is_absolute():
        raise UserError(
            f"{key}: expected an absolute path in a Ray job, whose working directory is deleted with it, got {path}; "
            "give a folder that all nodes share"
        )
