"""`learner.json`: what of the learner's state is equal on all ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import UserError
from common.paths import replace_file

NAME = "learner.json"
PICKLES = ("rank_0.pt", "engine")
"""What versions before this format wrote. They are not opened."""


class Header(BaseModel):
    """Attributes:
    format: of the folder.
    world_size: ranks that wrote it.
    updates: applied updates; the schedule and Adam count them. Without any there are no moments.
    parameters: shapes of the trained parameters, by name.
    counters: the learner's own.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[2] = 2
    world_size: int
    updates: int
    parameters: dict[str, tuple[int, ...]]
    counters: dict[str, float]

    def write(self, directory: Path) -> None:
        """Into a folder that is there."""
        replace_file(directory / NAME, json.dumps(self.model_dump(mode="json")))

    def check_parameters(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise ValueError unless these are the trained parameters."""
        for name, shape in self.parameters.items():
            if shapes.get(name) != shape:
                got = "none" if name not in shapes else f"shape {shapes[name]}"
                raise ValueError(
                    f"other trained weights: {name} of shape {shape} there, {got} here"
                )
        new = shapes.keys() - self.parameters.keys()
        if new:
            raise ValueError(
                f"other trained weights: {len(self.parameters)} there, {len(shapes)} here, such as {min(new)}"
            )


def read_header(directory: Path) -> Header:
    """The header of a folder.

    Raises:
        UserError: there is none, a damaged one, or one of another version.
    """
    path = directory / NAME
    if not path.is_file():
        check_version(directory)
        raise UserError(
            f"checkpoint {directory}: expected {NAME}, got no such file; resume from another checkpoint"
        )
    try:
        return Header.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        # pydantic's messages are of several lines.
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: expected the learner's state in format 2, got: {reason}; resume from an older checkpoint"
        ) from error


def check_version(directory: Path) -> None:
    """Refuse (UserError) a folder of an earlier version, which holds pickles."""
    for name in PICKLES:
        if (directory / name).exists():
            raise UserError(
                f"checkpoint {directory}: expected {NAME} of this version, got {name} of an earlier one, a pickle "
                "that is not opened; resume with the version that wrote it, or start a new run with model.path = the "
                "checkpoint's policy folder"
            )
