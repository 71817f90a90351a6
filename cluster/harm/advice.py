"""Which option helps, by what the run has set already."""

from __future__ import annotations

from collections.abc import Iterator

from common.config import Asking, EnsembleJudge, RunConfig
from common.config.losses import Loss, Mdpo, Mpo

ANCHOR_WEIGHT = 1.0
"""Of `nll_weight`. On BDHS pairs of the shapes world 0.1 did not turn the fall, 1 did (40 steps, docs/harm.md)."""


def anchored(config: RunConfig) -> str:
    """What keeps the chosen answers likely: an anchor for the first loss that has none."""
    for key, loss in _losses(config):
        missing = _missing_anchor(key, loss)
        if missing is not None:
            return missing
    return "lower learner.optimizer.lr, or raise learner.loss.beta"


def with_sight(config: RunConfig) -> str:
    """What makes a preference need the picture: a loss that holds it against a crop."""
    for key, loss in _losses(config):
        if not isinstance(loss, Mdpo):
            return f"set {key}.kind = mdpo"
    return "raise learner.loss.image_weight"


def more_varied(config: RunConfig) -> str:
    """What makes completions of a prompt differ."""
    rollout = config.rollout
    parts = [f"raise rollout.num_completions, got {rollout.num_completions}"]
    if rollout.top_p < 1:
        parts.append(f"rollout.top_p, got {rollout.top_p:g}")
    parts.append(f"or rollout.temperature, got {rollout.temperature:g}")
    return ", ".join(parts)


def without_length(config: RunConfig) -> str:
    """What tells whether the longer answer is the better one, and judges without regard to length."""
    check = "python -m cluster.evaluate judge says whether labels do so too; if not,"
    if isinstance(config.reward.judge, Asking):
        return f"{check} say in reward.judge.template that length does not count"
    return f"{check} join a judge that length does not please (reward.judge.kind = ensemble)"


def without_place(config: RunConfig) -> str:
    """What makes a judge look at answers one by one; a place that wins in both orders makes a tie."""
    judge = config.reward.judge
    if isinstance(judge, Asking):
        alone = "set reward.judge.mode = pointwise"
    elif isinstance(judge, EnsembleJudge):
        alone = "set the mode of the member that compares = pointwise"
    else:
        alone = "let it score answers one by one"
    return f"such groups become ties; {alone}, or take another judge"


def _losses(config: RunConfig) -> Iterator[tuple[str, Loss]]:
    """The losses of a run with their keys: the one for all pairs, then those of sources."""
    learner = config.learner
    yield "learner.loss", learner.loss
    for source, loss in learner.source_losses.items():
        yield f"learner.source_losses.{source}", loss


def _missing_anchor(key: str, loss: Loss) -> str | None:
    """Which setting of a loss keeps its chosen answers likely; None where it has one."""
    if loss.nll_weight >= ANCHOR_WEIGHT:
        return None
    if isinstance(loss, Mdpo):
        return None if loss.anchor_weight else f"raise {key}.anchor_weight, got 0"
    if isinstance(loss, Mpo):
        return (
            None if loss.generation_weight else f"raise {key}.generation_weight, got 0"
        )
    if loss.nll_weight:
        return f"raise {key}.nll_weight to {ANCHOR_WEIGHT:g}, got {loss.nll_weight:g}"
    return f"set {key}.nll_weight = {ANCHOR_WEIGHT:g}, or {key}.kind = mdpo, which has an anchor"
