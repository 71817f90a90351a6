"""In the rollout worker: arrays are checked, then laid into shared memory for the engine to map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from actors.shared_memory import check_room, shared_folder
from common.errors import UserError
from common.model_parts import is_vision_tower
from common.protocols import Tensors
from common.records import WeightManifest
from common.weights import BFLOAT16, LM_HEAD, checksum


def check_tensors(
    manifest: WeightManifest,
    tensors: Tensors,
    shapes: Mapping[str, tuple[int, ...]],
    tower_frozen: bool,
) -> None:
    """Refuse a push that is not the manifest's, or not this model's, before anything is changed.

    Every parameter must be there (fused layers would go wrong in silence), only a frozen tower may be left out.

    Raises:
        UserError: checksum, names or shapes differ.
    """
    found = {
        name.removesuffix(BFLOAT16): array.shape for name, array in tensors.items()
    }
    missing = sorted(
        n
        for n in shapes.keys() - found.keys()
        if not (tower_frozen and is_vision_tower(n))
    )
    unknown = sorted(found.keys() - shapes.keys() - {LM_HEAD})
    wrong = sorted(
        n for n in found.keys() & shapes.keys() if tuple(found[n]) != shapes[n]
    )
    head = f"weights {manifest.version}: expected the {len(shapes)} tensors of the start policy, got "
    for what, names in (
        ("without", missing),
        ("unknown", unknown),
        ("of another shape", wrong),
    ):
        if names:
            raise UserError(
                f"{head}{len(names)} {what}: {', '.join(names[:3])}; send names by common.weights.hub_name"
            )
    if (digest := checksum(tensors)) != manifest.checksum:
        raise UserError(
            f"weights {manifest.version}: expected checksum {manifest.checksum[:16]}, got {digest[:16]}; publish again"
        )


@contextmanager
def shared_file(tensors: Tensors) -> Iterator[Path]:
    """A safetensors file of the tensors in shared memory, readable by this user only, gone afterwards.

    Raises:
        UserError: shared memory is too small for it.
    """
    check_room(tensors)
    with shared_folder() as folder:
        path = folder / "weights.safetensors"
        path.touch(mode=0o600)
        save_file(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()}, path
        )
        yield path
