"""Which of the fast paths a run takes (`learner.fast`), and why not the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.config import RunConfig
from common.model_parts import language_model
from learner.forward import decoder
from learner.forward import onednn as products
from learner.forward.tree_logps import prepare, why_not
from learner.losses import make_loss
from learner.model.policy import Policy
from learner.model.vision_features import VisionShare, what_is_shared

NEEDS_TREE = "needs share_prompt"


@dataclass(frozen=True, slots=True)
class FastPath:
    """What is on; `fallbacks` names every switch that was asked for and is off, with the reason.

    `onednn` is never named: it asks for the faster of torch's two libraries, and gets it.
    """

    share_prompt: bool
    share_vision: bool
    fused_layers: bool
    onednn: bool
    reference_cache: Path | None
    fallbacks: dict[str, str]

    @classmethod
    def of(cls, config: RunConfig, policy: Policy) -> FastPath:
        """Decide for a policy whose trainable parameters are marked."""
        fast = config.learner.fast
        fallbacks: dict[str, str] = {}

        def possible(switch: str, reason_against: str | None) -> bool:
            if reason_against is not None:
                fallbacks[switch] = reason_against
            return reason_against is None

        # Each switch is only examined if it is asked for: what it would need may not exist for this model.
        tree = vision = layers = False
        if fast.share_prompt:
            reason = against_share_prompt(config, policy)
            tree = possible("share_prompt", reason)
        if fast.share_vision:
            reason = against_share_vision(config, policy, tree)
            vision = possible("share_vision", reason)
        if fast.fused_layers:
            reason = against_fused_layers(policy, tree)
            layers = possible("fused_layers", reason)
        # The policy's forward finds out for itself; here it is only reported.
        if fast.fused_logps:
            possible("fused_logps", against_fused_logps(config))
        cache = _cache_folder(config)
        if cache is not None:
            reason = against_reference_cache(config, tree)
            if not possible("reference_cache", reason):
                cache = None
        # Not a fallback: without it torch's other library is the faster one.
        on_cpu = config.learner.num_gpus == 0
        onednn = fast.onednn and on_cpu and products.mkl_is_slow()
        return cls(
            share_prompt=tree,
            share_vision=vision,
            fused_layers=layers,
            onednn=onednn,
            reference_cache=cache,
            fallbacks=fallbacks,
        )

    def shared(self, config: RunConfig, policy: Policy) -> VisionShare | None:
        """What policy and reference share of the vision side: they read each other's features."""
        if not self.share_vision:
            return None
        return VisionShare(policy.model, config.learner.fast.vision_cache_mb << 20)

    def apply(
        self,
        config: RunConfig,
        model: Policy,
        shared: VisionShare | None,
    ) -> None:
        """Switch a policy, or its reference, over; before an engine takes it."""
        model.fused = config.learner.fast.fused_logps
        model.vision = shared
        if self.share_prompt:
            prepare(model.model, self.fused_layers)
        if self.onednn:
            products.install(model)


def against_share_prompt(config: RunConfig, policy: Policy) -> str | None:
    """Why prompt and completions cannot stand once per pair in one row, or None."""
    reason = why_not(policy.model)
    if reason:
        return reason
    for loss in config.learner.losses:
        if make_loss(loss).needs.plain_rows:
            return f"the loss {loss.kind} needs the rows of the plain forward"
    return None


def against_share_vision(config: RunConfig, policy: Policy, tree: bool) -> str | None:
    """Why frozen parts of the vision side cannot run once for both models, or None."""
    if not tree:
        return NEEDS_TREE
    if config.learner.zero_stage == 3:
        return "ZeRO-3 gathers weights inside of the whole forward only"
    if what_is_shared(policy.model) == "nothing":
        return "the vision tower trains"
    return None


def against_fused_layers(policy: Policy, tree: bool) -> str | None:
    """Why decoder layers cannot run with few passes over memory, or None."""
    if not tree:
        return NEEDS_TREE
    model = policy.model
    vision_config = model.config.vision_config
    return decoder.why_not(language_model(model), vision_config)


def against_fused_logps(config: RunConfig) -> str | None:
    """Why the head cannot be fused with the log softmax, or None."""
    learner = config.learner
    if learner.engine == "deepspeed" and learner.zero_stage == 3:
        return "ZeRO-3 splits the policy's head up"
    return None


def against_reference_cache(config: RunConfig, tree: bool) -> str | None:
    """Why reference log-probs cannot be kept on disk, or None."""
    learner = config.learner
    if not any(loss.reads_reference for loss in learner.losses):
        return "no loss of this run reads the reference"
    if not tree:
        return NEEDS_TREE
    if learner.zero_stage == 3 and learner.num_ranks > 1:
        return "ZeRO-3 needs all ranks in every forward"
    return None


def _cache_folder(config: RunConfig) -> Path | None:
    name = config.learner.fast.reference_cache
    if name == "off":
        return None
    if name == "run":
        return config.run.dir / "reference_logps"
    return Path(name)
