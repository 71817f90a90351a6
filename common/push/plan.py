"""What a push consists of, said before its first byte: tensors in the order in which they come, cut into buckets."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError

BLOCK = 512
"""Bytes. `common.push.fingerprint` goes by it, and a tensor is cut up at multiples."""
ALIGNMENT = 16
"""Bytes. A tensor in a bucket begins at a multiple, so that it can be read where it lies, whatever its dtype."""

_UNREAD = ("_name_or_path", "transformers_version")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor by its name in the checkpoint.

    Attributes:
        dtype: as torch calls it, such as `bfloat16`.
        aliases: other names under which an engine reads the same values, such as that of a tied head.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself (ValueError for a name that is none)."""
        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{self.name}: expected a dtype, got {self.dtype!r}")
        return dtype

    @property
    def num_bytes(self) -> int:
        """Of the values alone."""
        return math.prod(self.shape) * self.torch_dtype.itemsize

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        return (self.name, *self.aliases)


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor in a bucket, or the part of a large one that has room there.

    Attributes:
        begin, end: bytes of the tensor.
        offset: of `begin` in the bucket.
    """

    spec: TensorSpec
    begin: int
    end: int
    offset: int

    @property
    def is_first(self) -> bool:
        """Whether the tensor begins here."""
        return self.begin == 0

    @property
    def is_last(self) -> bool:
        """Whether the tensor ends here."""
        return self.end == self.spec.num_bytes


@dataclass(frozen=True, slots=True)
class Bucket:
    """What travels together.

    Attributes:
        num_bytes: with the room between the pieces.
    """

    pieces: tuple[Piece, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class PushPlan:
    """All tensors of a push; the same one for all pushes of a run.

    Attributes:
        tensors: in the order in which the learner gathers them.
        bucket_bytes: a bucket is full at so many; a larger tensor is cut up.
        model: `model_digest` of the learner's model.
    """

    tensors: tuple[TensorSpec, ...]
    bucket_bytes: int
    model: str

    @property
    def num_bytes(self) -> int:
        """Of all values."""
        return sum(spec.num_bytes for spec in self.tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, aliases included."""
        shapes = {}
        for spec in self.tensors:
            shapes.update(dict.fromkeys(spec.names, spec.shape))
        return shapes

    def buckets(self) -> Iterator[Bucket]:
        """Both ends cut in the same way, so that no lengths travel."""
        pieces: list[Piece] = []
        size = 0
        for spec in self.tensors:
            for begin, end in self._cuts(spec):
                if pieces and size + end - begin > self.bucket_size:
                    yield Bucket(tuple(pieces), size)
                    pieces, size = [], 0
                pieces.append(Piece(spec, begin, end, size))
                size += aligned(end - begin)
        if pieces:
            yield Bucket(tuple(pieces), size)

    @property
    def bucket_size(self) -> int:
        """The most bytes of a bucket: `bucket_bytes` in whole blocks, at least one."""
        return max(BLOCK, self.bucket_bytes // BLOCK * BLOCK)

    def _cuts(self, spec: TensorSpec) -> Iterator[tuple[int, int]]:
        """Where a tensor is cut up: at whole blocks, so that its fingerprint can be taken part by part."""
        for begin in range(0, max(1, spec.num_bytes), self.bucket_size):
            yield begin, min(begin + self.bucket_size, spec.num_bytes)

    def check_model(self, version: int, model_path: str) -> None:
        """Refuse (UserError) a push of another revision of the model in this directory."""
        digest = model_digest(model_path)
        if digest != self.model:
            raise UserError(
                f"weights {version}: expected the learner's config.json ({self.model[:12]}), got another one "
                f"({digest[:12]}) in {model_path}; copy the same revision of the model to all nodes"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain lists, for a way that carries no classes."""
        tensors = []
        for spec in self.tensors:
            tensors.append(
                [spec.name, spec.dtype, list(spec.shape), list(spec.aliases)]
            )
        return {
            "tensors": tensors,
            "bucket_bytes": self.bucket_bytes,
            "model": self.model,
        }

    @classmethod
    def of_json(cls, plain: Mapping[str, Any]) -> PushPlan:
        """What `to_json` made."""
        tensors = []
        for name, dtype, shape, aliases in plain["tensors"]:
            tensors.append(TensorSpec(name, dtype, tuple(shape), tuple(aliases)))
        return cls(tuple(tensors), plain["bucket_bytes"], plain["model"])


def model_digest(model_path: str | Path) -> str:
    """Of what config.json says of a model, however it is written there; what no computation reads is left out."""
    config = json.loads((Path(model_path) / "config.json").read_text())
    for key in _UNREAD:
        config.pop(key, None)
    text = json.dumps(config, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def aligned(num_bytes: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
