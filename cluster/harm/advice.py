"""Which option helps, by what the run has set already."""

from __future__ import annotations

from common.config import RunConfig
from common.config.losses import Mdpo, Mpo

ANCHOR_WEIGHT = 1.0
"""Of `nll_weight`. On BDHS pairs of the shapes world 0.1 did not turn the fall, 1 did (40 steps, docs/harm.md)."""


def anchored(config: RunConfig) -> str:
    """What keeps the chosen answers likely."""
    loss = config.learner.loss
    if loss.nll_weight >= ANCHOR_WEIGHT or isinstance(loss, Mdpo | Mpo):
        return "lower learner.optimizer.lr, or raise learner.loss.beta"
    if loss.nll_weight:
        return f"raise learner.loss.nll_weight to {ANCHOR_WEIGHT:g}, got {loss.nll_weight:g}"
    return f"set learner.loss.nll_weight = {ANCHOR_WEIGHT:g}, or learner.loss.kind = mdpo, which has an anchor"


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
    if hasattr(config.reward.judge, "template"):
        return f"{check} say in reward.judge.template that length does not count"
    return f"{check} join a judge that length does not please (reward.judge.kind = ensemble)"


def without_place(config: RunConfig) -> str:
    """What makes a judge look at answers one by one; a place that wins in both orders makes a tie."""
    key = "reward.judge.mode"
    if not hasattr(config.reward.judge, "mode"):
        key = "the mode of the member that compares"
    return f"such groups become ties; set {key} = pointwise, or take another judge"
