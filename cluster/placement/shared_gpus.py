"""The GPUs of actors that share those of another one: their owner alone sees which they are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from cluster.placement.bundles import Bundle

log = logging.getLogger("sightline")

RETRY_S = 1.0


class SharedGpus:
    """Knows the GPUs of actors that are about to be started beside others."""

    def __init__(
        self, bundles: Sequence[Bundle], look: Callable[[str], str], limit_s: float
    ) -> None:
        """Learn who shares with whom.

        Args:
            look: waits for the actor of this name, and returns its GPUs, separated by commas.
            limit_s: how long an owner may not be there.
        """
        self._look = look
        self._limit_s = limit_s
        self._bundles: dict[str, Bundle] = {}
        for bundle in bundles:
            if bundle.beside and bundle.num_gpus:
                self._bundles[bundle.name] = bundle
        self._known: dict[str, str] = {}

    def of(self, name: str) -> str | None:
        """The GPUs of the actor of this name; None for one that shares none."""
        bundle = self._bundles.get(name)
        if bundle is None:
            return None
        return self._known.pop(name, None) or self._seen(bundle)

    async def wait_for(self, name: str) -> None:
        """Look at the GPUs that `of` will tell next, while the run goes on; their owner may be lost as well.

        Raises:
            Exception: the owner's, which did not come back within the limit.
        """
        bundle = self._bundles.get(name)
        deadline = time.monotonic() + self._limit_s
        while bundle is not None:
            try:
                self._known[name] = await asyncio.to_thread(self._seen, bundle)
                return
            except Exception as error:
                if time.monotonic() > deadline:
                    raise
                log.info("%s waits for %s: %s", name, bundle.beside, error)
            await asyncio.sleep(RETRY_S)

    def _seen(self, bundle: Bundle) -> str:
        gpus = self._look(bundle.beside).split(",")
        count = int(bundle.num_gpus)
        first = bundle.turn * count
        return ",".join(gpus[first : first + count])
