"""The engine that a configuration asks for."""

from __future__ import annotations

from actors.engine.async_engine import AsyncVllmEngine
from actors.engine.numerics_gate import DEFAULT_LIMITS, GateLimits
from actors.engine.stepped_engine import SteppedVllmEngine
from actors.engine.vllm_engine import VllmEngine
from common.config import Model, Rollout


def make_engine(
    model: Model,
    rollout: Rollout,
    *,
    seed: int = 0,
    gate: GateLimits = DEFAULT_LIMITS,
    timeout_s: float = 600,
    sleeps: bool = False,
) -> VllmEngine:
    """Start vLLM on `model.path`: in a process of its own, or stepped in this one if `rollout.deterministic`.

    Raises:
        UserError: the directory is no Hugging Face model directory with safetensors weights.
    """
    engine_class = SteppedVllmEngine if rollout.deterministic else AsyncVllmEngine
    return engine_class(
        model,
        rollout,
        seed=seed,
        gate=gate,
        timeout_s=timeout_s,
        sleeps=sleeps,
    )
