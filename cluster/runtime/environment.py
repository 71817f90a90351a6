"""Environment variables of actors that must be written nowhere.

Ray writes a `runtime_env` to its logs, to the command line of a worker, and to its dashboard. Values of
`cluster.pass_env` therefore go to an actor as an argument of its constructor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from common.config import Cluster
from common.errors import UserError


def passed_variables(
    config: Cluster,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """The variables of `cluster.pass_env` with their values.

    Raises:
        UserError: one of them is not set here.
    """
    missing = [name for name in config.pass_env if name not in environment]
    if missing:
        raise UserError(
            f"cluster.pass_env: expected {missing[0]} in the environment of this command, got none; set it, or leave "
            "its name out"
        )
    return {name: environment[name] for name in config.pass_env}


def with_variables(worker: Any) -> type:
    """The worker's class, with variables of its process in front of its other arguments."""

    def init(self: Any, variables: Mapping[str, str], *args: Any) -> None:
        # First, so that whatever the worker imports finds them.
        os.environ.update(variables)
        worker.__init__(self, *args)

    # Ray shows the name of the class.
    return type(worker.__name__, (worker,), {"__init__": init})
