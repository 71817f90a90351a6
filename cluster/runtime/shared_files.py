"""Whether all actors see the files of a run: told within seconds of their start, before any model is loaded.

Two nodes with a folder of the same name each would write half checkpoints that look whole. So the controller writes a
new nonce into the folder at every start, and every actor must read the same.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cluster.runtime.clients import survey
from cluster.runtime.waiting import answer
from common.errors import UserError
from common.protocols import Handle, Runtime, Sight

NONCE = ".nonce"


@dataclass(frozen=True, slots=True)
class SharedFiles:
    """What actors must see.

    Attributes:
        key: of the folder, as the user set it.
        folder: that the controller and all actors write to or read from.
        paths: path -> its key; what all actors read.
        of_actor: the same for single actors by name, or for all of a kind, such as "learner".
    """

    key: str
    folder: Path
    paths: Mapping[str, str] = field(default_factory=dict)
    of_actor: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    nonce: str = field(default_factory=partial(secrets.token_hex, 16))

    async def check_nodes(self, runtime: Runtime, limit_s: float) -> None:
        """Ask every node, before anything heavy is imported there.

        Raises:
            UserError: which machine does not see the folder.
        """
        with self._nonce_file() as file:
            checks = []
            for name, sight in runtime.survey_nodes(file).items():
                checks.append(self._check_node(name, sight, limit_s))
            await asyncio.gather(*checks)

    async def check(self, handles: Mapping[str, Handle], limit_s: float) -> None:
        """Ask all actors at once, by name; the first that does not see something ends it.

        Raises:
            UserError: which actor on which machine does not see what.
        """
        with self._nonce_file() as file:
            checks = []
            for name, handle in handles.items():
                checks.append(self._check_actor(name, handle, file, limit_s))
            await asyncio.gather(*checks)

    @contextmanager
    def _nonce_file(self) -> Iterator[str]:
        """The file, as long as it is asked for."""
        file = self.folder.resolve() / NONCE
        file.write_text(self.nonce)
        try:
            yield str(file)
        finally:
            file.unlink(missing_ok=True)

    async def _check_node(
        self, name: str, sight: Awaitable[Sight], limit_s: float
    ) -> None:
        self._compare(name, await answer(sight, limit_s, f"the node of {name}"))

    async def _check_actor(
        self, name: str, handle: Handle, file: str, limit_s: float
    ) -> None:
        key_of_path = self._paths_of(name)
        sight = await survey(handle, limit_s, name, file, tuple(key_of_path))
        self._compare(name, sight)
        for path in sight.missing:
            raise UserError(
                f"{key_of_path[path]}: expected every node to have {path}, got none on {sight.host}, where {name} is"
                f"{_from_folder(path, sight)}; copy it there, or use a path on a file system that all nodes share"
            )

    def _compare(self, name: str, sight: Sight) -> None:
        if sight.nonce == self.nonce:
            return
        got = "no such file"
        if sight.nonce is not None:
            got = "another folder of that name"
        raise UserError(
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
