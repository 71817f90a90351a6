"""Wrong pushes, as an engine could come by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.gate_sides import HEAD, Push
from common.weights import checksum
from learner.publisher import Arrays

LAYER = ".layers.4."
"""In the middle of the language model."""


class Pushes:
    """The weights of a moment, of the push before, and of the start, by name."""

    def __init__(self, now: Arrays, before: Arrays, start: Arrays) -> None:
        self.now = now
        self.before = before
        self.start = start


def stale_layer(pushes: Pushes) -> Arrays:
    """One layer still holds the start policy."""
    return _mixed(pushes.now, pushes.start, lambda name: _in_language_layer(name))


def stale_head(pushes: Pushes) -> Arrays:
    """A head that the engine holds apart from the embedding, and that no push reaches."""
    return _mixed(pushes.now, pushes.start, lambda name: HEAD in name)


def swapped_q_and_k(pushes: Pushes) -> Arrays:
    """Of one layer."""
    arrays = dict(pushes.now)
    for name in pushes.now:
        if _in_language_layer(name) and "q_proj" in name:
            other = name.replace("q_proj", "k_proj")
            arrays[name], arrays[other] = pushes.now[other], pushes.now[name]
    return arrays


def one_push_late(pushes: Pushes) -> Arrays:
    """The weights of the push before."""
    return dict(pushes.before)


FAULTS: Mapping[str, Callable[[Pushes], Arrays]] = {
    "stale layer": stale_layer,
    "swapped q and k": swapped_q_and_k,
    "one push late": one_push_late,
    "untied head": stale_head,
}
"""Of whole weights: what the engine is given in the place of what was published."""


def zeroed(arrays: Arrays) -> Arrays:
    """An adapter that is not there."""
    zeros: Arrays = {}
    for name, array in arrays.items():
        zeros[name] = np.zeros_like(array)
    return zeros


def disguised(push: Push, arrays: Arrays) -> Push:
    """The manifest and its probe with other arrays, which pass the checksum."""
    manifest, _ = push
    return replace(manifest, checksum=checksum(arrays)), arrays


def without_a_layer(arrays: Arrays) -> Arrays:
    """As when a loader does not know a layer's names."""
    return {
        name: array for name, array in arrays.items() if not _in_language_layer(name)
    }


@contextmanager
def unchecked_names(engine: Any) -> Iterator[None]:
    """An engine that takes whatever names it is given."""
    expected = engine._expected
    engine._expected = SimpleNamespace(check=lambda manifest, tensors: None)
    try:
        yield
    finally:
        engine._expected = expected


@contextmanager
def kept_caches(engine: Any) -> Iterator[None]:
    """An engine that forgets to empty its caches at a push: features of pictures stay as they were."""
    llm = engine._llm
    pause = llm.pause_generation

    async def pause_alone(**options: Any) -> None:
        await pause(**{**options, "clear_cache": False})

    llm.pause_generation = pause_alone
    try:
        yield
    finally:
        llm.pause_generation = pause


def _mixed(now: Arrays, other: Arrays, is_other: Callable[[str], bool]) -> Arrays:
    arrays = dict(now)
    for name in now:
        if is_other(name):
            arrays[name] = other[name]
    return arrays


def _in_language_layer(name: str) -> bool:
    return "language_model" in name and LAYER in name
