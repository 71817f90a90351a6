"""Makes the eye that a config names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common import config
from common.protocols import Eye
from reward.eyes.engine_eye import AnswerEngine, EngineEye


@dataclass(frozen=True, slots=True)
class EyeTools:
    """What eyes need beside their config.

    Attributes:
        engines: clients of the judges' engines, by the settings that they were started for.
        replies: folder for paid replies of this worker; None keeps none.
        num_spenders: workers that share a budget.
    """

    engines: Mapping[config.EngineEye, Sequence[AnswerEngine]] = field(
        default_factory=dict
    )
    replies: Path | None = None
    num_spenders: int = 1


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
            return EndpointEye(settings, replies, tools.num_spenders)


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
