"""Buckets from the learner to all engines: two at a time, with a fingerprint behind each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from common.push.buffers import Buffers
from common.push.fingerprint import SIZE, Digest
from common.push.meeting import Group, Sent
from common.push.plan import Bucket, Piece, PushPlan, TensorSpec

Named = Iterator[tuple[TensorSpec, Tensor]]
"""Tensors in the order of the plan."""
Fingerprints = list[tuple[TensorSpec, bytes]]


class DamagedBucket(RuntimeError):
    """What arrived is not what was sent."""


def send(
    plan: PushPlan,
    device: torch.device,
    connect: Callable[[], Group],
    tensors: Named,
    empty: Callable[..., Tensor] = torch.empty,
) -> Fingerprints:
    """Send all tensors; returns their fingerprints once every receiver has them.

    Beside what `tensors` holds this takes two buckets of memory: one travels while the other is filled.

    Args:
        device: of the group's buckets.
        connect: called once, when the first bucket is full.
        empty: makes a bucket, given its size, dtype and device.

    Raises:
        PushBroken: a receiver went away, or took too long.
    """
    sender = _Sender(plan, connect, partial(empty, dtype=torch.uint8, device=device))
    fingerprints: Fingerprints = []
    for bucket in plan.buckets():
        fingerprints += sender.send(bucket, tensors)
    # Lets the source end what it holds open.
    assert next(tensors, None) is None, "the plan names all tensors"
    sender.finish()
    return fingerprints


class _Sender:
    """Two buffers in turns."""

    def __init__(
        self,
        plan: PushPlan,
        connect: Callable[[], Group],
        empty: Callable[[int], Tensor],
    ) -> None:
        self._empty = empty
        self._connect = connect
        self._group: Group | None = None
        largest = max(bucket.num_bytes for bucket in plan.buckets())
        self._size = largest + SIZE
        self._buffers: list[Tensor] = []
        self._travelling: list[Sent | None] = [None, None]
        self._turn = 0
        # Of the tensor that is being sent.
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._digest = Digest()

    def send(self, bucket: Bucket, tensors: Named) -> Fingerprints:
        """Fill the next buffer and let it go; returns the fingerprints of the tensors that end in it."""
        buffer = self._free_buffer()[: bucket.num_bytes + SIZE]
        digests: list[bytes] = []
        fingerprints: Fingerprints = []
        for piece in bucket.pieces:
            if piece.is_first:
                self._take(piece.spec, tensors)
            # Gaps between pieces keep what was there: nobody reads them.
            place = _place(buffer, piece)
            place.copy_(self._bytes[piece.begin : piece.end])
            self._digest.add(place)
            digests.append(self._digest.value)
            if piece.is_last:
                fingerprints.append((piece.spec, self._digest.value))
        trailer = bytearray(seal(digests))
        buffer[bucket.num_bytes :].copy_(torch.frombuffer(trailer, dtype=torch.uint8))
        if self._group is None:
            self._group = self._connect()
        self._travelling[self._turn] = self._group.broadcast(buffer)
        self._turn = 1 - self._turn
        return fingerprints

    def _take(self, expected: TensorSpec, tensors: Named) -> None:
        # Before the next one is made: its memory may be that of this one.
        self._bytes = torch.empty(0, dtype=torch.uint8)
        spec, tensor = next(tensors)
        assert spec == expected, f"{spec.name} comes where {expected.name} should"
        self._bytes = _bytes_of(tensor)
        self._digest = Digest()

    def _free_buffer(self) -> Tensor:
        if len(self._buffers) <= self._turn:
            self._buffers.append(self._empty(self._size))
        self._wait(self._turn)
        return self._buffers[self._turn]

    def _wait(self, turn: int) -> None:
        work = self._travelling[turn]
        if work is not None:
            work.wait()
            self._travelling[turn] = None

    def finish(self) -> None:
        """Wait for what still travels, in the order in which it was sent, until all receivers have it."""
        self._wait(self._turn)
        self._wait(1 - self._turn)
        assert self._group is not None, "a plan has a bucket"
        self._group.finish()


def receive(plan: PushPlan, group: Group) -> Iterator[tuple[str, Tensor]]:
    """All tensors by each of their names; the next bucket travels while those of one are loaded.

    A tensor lies in its bucket's memory, which is free once no tensor of it is kept; one that was cut up is put
    together in memory of its own.

    Raises:
        PushBroken: the learner, or another receiver, went away.
        DamagedBucket: a fingerprint differs.
    """
    buckets = list(plan.buckets())
    largest = max(bucket.num_bytes for bucket in buckets)
    buffers = Buffers(largest + SIZE, group.device)
    coming = _begin(buckets[0], group, buffers)
    digest = Digest()
    whole = torch.empty(0, dtype=torch.uint8)
    for number, bucket in enumerate(buckets):
        buffer, work = coming
        work.wait()
        is_last = number + 1 == len(buckets)
        if not is_last:
            coming = _begin(buckets[number + 1], group, buffers)
        digest = _checked(bucket, buffer, digest, f"{number + 1} of {len(buckets)}")
        if is_last:
            group.finish()
        for piece in bucket.pieces:
            place = _place(buffer, piece)
            if piece.is_first and piece.is_last:
                yield from _named(piece.spec, place)
                continue
            if piece.is_first:
                whole = torch.empty_like(place[:0]).resize_(piece.spec.num_bytes)
            whole[piece.begin : piece.end].copy_(place)
            if piece.is_last:
                yield from _named(piece.spec, whole)


def _named(spec: TensorSpec, values: Tensor) -> Iterator[tuple[str, Tensor]]:
    tensor = values.view(spec.torch_dtype).view(spec.shape)
    for name in spec.names:
        yield name, tensor


def seal(digests: Sequence[bytes]) -> bytes:
    """What follows a bucket, made of the fingerprints of its pieces."""
    return hashlib.sha256(b"".join(digests)).digest()


def _place(buffer: Tensor, piece: Piece) -> Tensor:
    return buffer[piece.offset : piece.offset + piece.end - piece.begin]


def _begin(bucket: Bucket, group: Group, buffers: Buffers) -> tuple[Tensor, Sent]:
    buffer = buffers.take(bucket.num_bytes + SIZE)
    return buffer, group.broadcast(buffer)


def _checked(bucket: Bucket, buffer: Tensor, digest: Digest, which: str) -> Digest:
    """The digest of the tensor that goes on in the next bucket, given that of the one that came from the last.

    Raises:
        DamagedBucket: the seal is another one.
    """
    digests = []
    for piece in bucket.pieces:
        if piece.is_first:
            digest = Digest()
        digest.add(_place(buffer, piece))
        digests.append(digest.value)
    expected = bytes(buffer[bucket.num_bytes :].cpu().numpy())
    got = seal(digests)
    if got != expected:
        raise DamagedBucket(
            f"bucket {which}: expected fingerprint {expected.hex()[:16]}, got {got.hex()[:16]}; the network or a "
            "memory is faulty, push again"
        )
    return digest


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
