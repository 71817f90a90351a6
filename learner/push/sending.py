"""One rank's part in streamed pushes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from common.machine.address import LOOPBACK, node_address
from common.push.fingerprint import fingerprint_of_all
from common.push.meeting import (
    READY,
    SENDER,
    Group,
    Meeting,
    MeetingPlace,
    Place,
    PushBroken,
    bucket_device,
    empty_bucket,
    join,
    memory_id,
    network_id,
    tell_broken,
)
from common.push.plan import PushPlan
from common.push.wire import Fingerprints, send
from common.records import LogprobProbe, WeightManifest
from learner.push.source import WeightSource


class PushSender:
    """Sends the weights of a source, as they are when it is asked.

    Args:
        source: of this rank.
        plan: of its tensors.
        rank: 0 sends; others take part in gathering, and with `ipc` each sends to the engines on its GPU.
        device: of the weights.
    """

    def __init__(
        self,
        source: WeightSource,
        plan: PushPlan,
        rank: int,
        device: torch.device,
    ) -> None:
        self.plan = plan
        self._source = source
        self._rank = rank
        self._device = device
        self._place: MeetingPlace | None = None

    def meeting_place(self, networks: Sequence[str]) -> Place:
        """Where engines of these networks find rank 0; the same as long as all reach it there."""
        is_local = set(networks) <= {network_id()}
        address = LOOPBACK if is_local else node_address()
        place = self._place
        # What other nodes reach, this one reaches too.
        if place is None or (place.address == LOOPBACK and address != LOOPBACK):
            place = MeetingPlace(address)
            self._place = place
        return Place(place.address, place.port, self._device.type, memory_id())

    @contextmanager
    def telling(self, meeting: Meeting) -> Iterator[None]:
        """Around all that a push begins with: engines wait for its first bucket, and hear why it will not come."""
        try:
            yield
        except BaseException as error:
            if self._place is not None:
                tell_broken(self._place.store(meeting), f"the learner failed: {error}")
            raise

    def push(
        self,
        version: int,
        meeting: Meeting,
        start: Mapping[str, nn.Parameter],
        probe: LogprobProbe | None,
    ) -> tuple[WeightManifest | None, str]:
        """Send all weights (collective).

        Args:
            start: parameters of the start policy, as of `WeightSource.tensors`.
            probe: goes into the manifest.

        Returns:
            On rank 0 the manifest of what was sent, and why the push broke off, if it did.
        """
        if self._rank != SENDER and meeting.backend != "ipc":
            self._source.gather(start)
            return None, ""
        tensors = self._source.tensors(start)
        joined: list[Group] = []
        fingerprints: Fingerprints = []
        broken = ""

        def connect() -> Group:
            joined.append(self._join(meeting))
            return joined[0]

        device = bucket_device(meeting, self._device)
        try:
            empty = empty_bucket(meeting)
            fingerprints = send(self.plan, device, connect, tensors, empty)
        except PushBroken as error:
            broken = str(error)
        except BaseException as error:
            broken = f"the learner failed: {error}"
            raise
        finally:
            for group in joined:
                group.leave(broken)
        # The other ranks still gather.
        deque(tensors, maxlen=0)
        if self._rank != SENDER or broken:
            return None, broken
        return self._manifest(version, fingerprints, probe), ""

    def _join(self, meeting: Meeting) -> Group:
        if self._rank != SENDER:
            return join(meeting, SENDER, meeting.store(), self._device)
        assert self._place is not None, "the meeting is at this rank's place"
        store = self._place.store(meeting)
        store.set(READY, "")
        return join(meeting, SENDER, store, self._device)

    def _manifest(
        self,
        version: int,
        fingerprints: Fingerprints,
        probe: LogprobProbe | None,
    ) -> WeightManifest:
        return WeightManifest(
            version=version,
            checksum=fingerprint_of_all(fingerprints),
            num_tensors=len(self.plan.shapes),
            num_bytes=self.plan.num_bytes,
            change_norm=self._source.change_norm,
            probe=probe,
            merged_survives=self._source.merged_survives,
        )
