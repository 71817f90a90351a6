"""Makes the eye that a config names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from common import config
from common.protocols import Eye
from reward.eyes.engine_eye import AnswerEngine, EngineEye


class PaidEye(Protocol):
    """An eye that costs money."""

    def usage(self) -> Mapping[str, float | None]:
        """Replies, tokens, and their cost."""
        ...


@dataclass(frozen=True, slots=True)
class EyeTools:
    """What eyes need beside their config.

    Attributes:
        engines: clients of the judges' engines, by the settings that they were started for.
        replies: folder for paid replies of this worker; None keeps none.
        num_spenders: workers that share a budget.
        paid: the eyes behind servers that were made with these tools.
    """

    engines: Mapping[config.EngineEye, Sequence[AnswerEngine]] = field(
        default_factory=dict
    )
    replies: Path | None = None
    num_spenders: int = 1
    paid: list[PaidEye] = field(default_factory=list)

    def usage(self) -> dict[str, float]:
        """What all servers have answered and cost; a cost that nobody knows is absent."""
        total: dict[str, float] = {}
        for eye in self.paid:
            for name, amount in eye.usage().items():
                if amount is not None:
                    total[name] = total.get(name, 0) + amount
        return total


def make_eye(
    settings: config.EngineEye | config.TorchEye | config.EndpointEye,
    tools: EyeTools,
) -> Eye:
    """The eye of this kind (UserError when it cannot be made)."""
    # Torch and the client of endpoints are loaded only when they are asked for.
    match settings:
        case config.EngineEye():
            return EngineEye(tools.engines[settings])
        case config.TorchEye():
            from reward.eyes.torch_eye import TorchEye

            return TorchEye(settings)
        case config.EndpointEye():
            from reward.eyes.endpoint_eye import EndpointEye

            replies = _replies_of(settings, tools.replies)
            eye = EndpointEye(settings, replies, tools.num_spenders)
            tools.paid.append(eye)
            return eye


def _replies_of(
    settings: config.EndpointEye,
    folder: Path | None,
) -> Path | None:
    """A file per server and model: their budgets are counted apart."""
    if folder is None:
        return None
    server = f"{settings.base_url}\0{settings.model}"
    name = hashlib.sha256(server.encode()).hexdigest()[:12]
    return folder / f"{name}.jsonl"
