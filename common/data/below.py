"""The rule for paths that come from the rows of a data set.

A row names files below a root that the user gave: relative to it, or by an absolute path below it. Links below the root
are the user's own and are followed wherever they lead (a hub cache's snapshots link to its blobs, an image folder to
another disk). Two things would let a row name any file around the root, and are refused: `..`, and a link to a folder
that the root itself lies in.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from common.errors import Refused

MAX_PATH_CHARS = 4096
"""Longer texts are no paths on any disk."""
SHOWN_CHARS = 120
"""How much of an untrusted path a message repeats."""


def path_below(root: Path, path: str) -> Path:
    """The absolute path of the file that a row names. Whether it exists is not checked.

    Links are resolved in the result, except where they lead out of the root.

    Raises:
        Refused: `path_outside` when the path leaves the root, `image_missing` when no disk can hold such a path (links
            in a circle, a name that is too long, a zero byte).
    """
    if len(path) > MAX_PATH_CHARS:
        raise Refused(
            "image_missing",
            f"{path[:SHOWN_CHARS]}: expected the path of a file, got {len(path):,} characters; repair it",
        )
    try:
        file = _followed(root, PurePosixPath(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise Refused(
            "image_missing",
            f"{path[:SHOWN_CHARS]!r}: expected the path of a file, got {error}; repair it",
        ) from error
    if file is None:
        raise Refused(
            "path_outside",
            f"{path[:SHOWN_CHARS]}: expected a path below {root} (links in it are followed, but neither '..' nor links "
            "to a folder around it), got one that leaves it",
        )
    return file


def _followed(root: Path, path: PurePosixPath) -> Path | None:
    """The file behind all links, or None when the path leaves the root."""
    if ".." in path.parts:
        return None
    real_root = root.resolve()
    if path.is_absolute():
        inside = _relative_to_root(root, real_root, path)
        if inside is None:
            return None
        path = inside
    file = (real_root / path).resolve()
    if file.is_relative_to(real_root):
        return file
    step = real_root
    for part in path.parts:
        step = step / part
        target = step.resolve()
        if target != real_root and real_root.is_relative_to(target):
            return None
    return real_root / path


def _relative_to_root(
    root: Path, real_root: Path, path: PurePosixPath
) -> PurePosixPath | None:
    """An absolute path relative to the root, as the user spells it or behind links; None when it lies elsewhere."""
    for spelled in (root.absolute(), real_root):
        if path.is_relative_to(spelled):
            return path.relative_to(spelled)
    real_path = Path(path).resolve()
    if real_path.is_relative_to(real_root):
        return PurePosixPath(real_path.relative_to(real_root))
    return None
