"""How old a pair is, in published weight versions."""

from __future__ import annotations

from common.records import PreferencePair


def staleness(pair: PreferencePair, learner_version: int) -> int | None:
    """Learner version minus the version that began the pair's samples, measured when the pair is used.

    None for offline pairs, which never go stale.
    """
    version = pair.weight_version
    # Offline pairs were sampled before this run, if at all.
    if version is None:
        return None
    assert version <= learner_version, (
        f"pair {pair.id} has weight version {version}, "
        f"but the learner is at {learner_version}"
    )
    return learner_version - version


def is_stale(
    pair: PreferencePair,
    learner_version: int,
    max_staleness: int,
) -> bool:
    """Whether the pair is too old to be trained on."""
    age = staleness(pair, learner_version)
    return age is not None and age > max_staleness
