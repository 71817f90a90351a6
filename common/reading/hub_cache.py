"""Folders of a Hugging Face cache in place of the data: they are resolved to the snapshot that the hub calls `main`.

    hub/datasets--ORG--NAME/blobs/…             contents, named by their hashes
                            refs/main           the commit of a snapshot
                            snapshots/COMMIT/   links to blobs, under the names that the data set has

A cache that is read as it lies gives every snapshot's rows, and paths of images that lead nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError

MAIN = "refs/main"
SNAPSHOTS = "snapshots"
LISTED = 8
"""How many folders a message lists."""


def snapshot_of(path: Path, option: str) -> Path:
    """The snapshot behind a folder of a cache: a hub, a data set in it, or its `snapshots`; any other path as it is.

    Args:
        option: what the path is to the user, for messages.

    Raises:
        UserError: the cache leaves open which snapshot is meant, or has none.
    """
    if not path.is_dir():
        return path
    if path.name == SNAPSHOTS and _is_repository(path.parent):
        return _snapshot(path.parent, option)
    if _is_repository(path):
        return _snapshot(path, option)
    # HF_HOME has the cache in `hub`.
    hub = path / "hub" if (path / "hub").is_dir() else path
    repositories = sorted(filter(_is_repository, hub.glob("datasets--*")))
    if not repositories:
        return path
    if len(repositories) > 1:
        raise UserError(
            f"{option}: expected one data set, got {path}, a cache of {len(repositories)}; "
            f"give one of {_listed(repositories)}"
        )
    return _snapshot(repositories[0], option)


def _is_repository(path: Path) -> bool:
    """Whether a folder is laid out as a cache keeps a repository."""
    is_named = path.name.startswith(("datasets--", "models--", "spaces--"))
    is_kept = is_named or (path / "refs").is_dir() or (path / "blobs").is_dir()
    return is_kept and (path / SNAPSHOTS).is_dir()


def _snapshot(repository: Path, option: str) -> Path:
    """The snapshot that `refs/main` names, or the only one."""
    snapshots = sorted(
        folder for folder in (repository / SNAPSHOTS).iterdir() if folder.is_dir()
    )
    if not snapshots:
        raise UserError(
            f"{option}: expected a snapshot in {repository / SNAPSHOTS}, got none; fetch the data set again"
        )
    main = _read_main(repository)
    for folder in snapshots:
        if folder.name == main:
            return folder
    if main is None and len(snapshots) == 1:
        return snapshots[0]
    got = f"no {MAIN}" if main is None else f"{MAIN} of another, {main[:40]!r}"
    raise UserError(
        f"{option}: expected {repository} to say which of its snapshots is meant, got {got}; "
        f"give one of {_listed(snapshots)}, or fetch it again"
    )


def _read_main(repository: Path) -> str | None:
    """The commit of `main`; None where the cache has no such reference."""
    try:
        return (repository / MAIN).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, ValueError):
        return None


def _listed(folders: Sequence[Path]) -> str:
    names = [str(folder) for folder in folders[:LISTED]]
    if len(folders) > LISTED:
        names.append(f"… ({len(folders)} in all)")
    return ", ".join(names)
