"""A handle of one Ray actor. It knows Ray's errors by their names: one file alone imports Ray."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from common.protocols import Pulse

PULSE = "pulse"
"""The method that is answered beside all others, in a concurrency group of this name."""
DEATHS = {"ActorDiedError", "ActorUnavailableError"}
REASONS = {
    "its node has died": "its machine has left the cluster",
    "running low on memory": "Ray killed it, because its machine was short of memory",
    "killed by `ray.kill`": "it was stopped",
    "SYSTEM_ERROR": "its process ended without a word: killed (SIGKILL, often for want of memory), or crashed",
    "unavailable": "it cannot be reached",
    "died because of an error raised in its creation task": "it could not be made",
}
"""Words of Ray -> what they mean."""
MAX_SHOWN = 200


class RayHandle:
    """One actor. References are Ray object refs: awaitable, and cheap to pass on.

    `ray.kill` returns before the actor is dead, and a call sent after it may still be answered: a handle whose actor
    was stopped sends none.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._stopped = False

    @property
    def actor(self) -> Any:
        """The actor, to send it a call. Raises RuntimeError once it was stopped."""
        if self._stopped:
            raise RuntimeError(
                "expected a running worker, got a call to one that was stopped"
            )
        return self._actor

    def retire(self) -> Any:
        """The actor, to be killed; no call is sent to it any more."""
        actor = self.actor
        self._stopped = True
        return actor

    def call(self, method: str, *args: Any) -> Awaitable[Any]:
        remote_method = getattr(self.actor, method)
        reference: Awaitable[Any] = remote_method.remote(*args)
        return reference

    def call_split(
        self, method: str, num_returns: int, *args: Any
    ) -> Sequence[Awaitable[Any]]:
        remote_method = getattr(self.actor, method).options(num_returns=num_returns)
        references: Sequence[Awaitable[Any]] = remote_method.remote(*args)
        return references

    def pulse(self) -> Awaitable[Pulse]:
        remote_method = self.actor.pulse.options(concurrency_group=PULSE)
        reference: Awaitable[Pulse] = remote_method.remote()
        return reference

    def death(self, error: BaseException) -> str | None:
        if type(error).__name__ not in DEATHS:
            return None
        # The death of another actor, whose result was an argument of the call, is raised in the same way.
        dead = getattr(error, "actor_id", None)
        if dead is not None and dead != self._actor._actor_id.hex():
            return None
        return cause_of_death(str(error))


def cause_of_death(text: str) -> str:
    """What Ray says of a death, in one short line."""
    for words, meaning in REASONS.items():
        if words in text:
            return meaning
    return " ".join(text.split())[:MAX_SHOWN]
