"""Whether all actors see the files of a run: told within seconds of their start, before any model is loaded.

Two nodes with a folder of the same name each would write half checkpoints that look whole. So the controller writes a
new nonce into the folder at every start, and every actor must read the same.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster.runtime.clients import survey
from cluster.runtime.seated import Sight
from common.errors import UserError
from common.protocols import Handle

NONCE = ".nonce"


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """What actors must see.

    Attributes:
        key: of the folder, as the user set it.
        folder: that the controller and all actors write to or read from.
        paths: key -> path that all actors read.
        of_actor: the same for single actors, by name; or by kind, such as "learner".
    """

    key: str
    folder: Path
    paths: Mapping[str, str] = field(default_factory=dict)
    of_actor: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    async def check(self, handles: Mapping[str, Handle], limit_s: float) -> None:
        """Ask all actors at once, by name; the first that does not see something ends it.

        Raises:
            UserError: which actor on which machine does not see what.
        """
        nonce = secrets.token_hex(16)
        file = self.folder.resolve() / NONCE
        file.write_text(nonce)
        surveys = []
        for name, handle in handles.items():
            surveys.append(self._check_actor(name, handle, file, nonce, limit_s))
        await asyncio.gather(*surveys)

    async def _check_actor(
        self,
        name: str,
        handle: Handle,
        file: Path,
        nonce: str,
        limit_s: float,
    ) -> None:
        key_of_path = {path: key for key, path in self._paths_of(name).items()}
        sight = await survey(handle, limit_s, name, str(file), tuple(key_of_path))
        if sight.nonce != nonce:
            raise UserError(self._unshared(name, sight))
        for path in sight.missing:
            raise UserError(
                f"{key_of_path[path]}: expected every node to have {path}, got none on {sight.host}, where {name} is"
                f"{_from_folder(path, sight)}; copy it there, or use a path on a file system that all nodes share"
            )

    def _unshared(self, name: str, sight: Sight) -> str:
        got = "no such file"
        if sight.nonce is not None:
            got = "another folder of that name"
        return (
            f"{self.key}: expected a folder that all nodes share, got {got} for {self.folder.resolve()} on "
            f"{sight.host}, where {name} is; put it on a file system that every node has mounted there"
        )

    def _paths_of(self, name: str) -> dict[str, str]:
        kind = name.partition("/")[0]
        paths = dict(self.paths)
        for actor in (kind, name):
            paths |= self.of_actor.get(actor, {})
        return paths


def _from_folder(path: str, sight: Sight) -> str:
    """Where a relative path was looked for."""
    return "" if Path(path).is_absolute() else f" (looked for from {sight.folder})"
