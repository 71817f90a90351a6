"""Which of the fast paths a run takes (`learner.fast`), and why not the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.config import RunConfig
from common.model_parts import language_model
from learner import decoder, products
from learner.losses import REFERENCE_FREE
from learner.policy import Policy
from learner.tree_logps import prepare, why_not
from learner.vision import VisionShare, what_is_shared

ROW_LOSSES = ("povid",)
"""Losses that look at the rows of the plain forward."""


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
    def of(cls, config: RunConfig, policy: Policy, losses: tuple[str, ...]) -> FastPath:
        """Decide for a policy whose trainable parameters are marked.

        Args:
            losses: kinds of all losses of the run.
        """
        learner, fast = config.learner, config.learner.fast
        reasons: dict[str, str] = {}
        tree = fast.share_prompt
        if tree and (reason := why_not(policy.model)):
            reasons["share_prompt"] = reason
        elif tree and set(losses) & set(ROW_LOSSES):
            reasons["share_prompt"] = (
                f"the loss {ROW_LOSSES[0]} needs the rows of the plain forward"
            )
        tree = tree and not reasons
        vision = fast.share_vision
        if vision and not tree:
            reasons["share_vision"] = "needs share_prompt"
        elif vision and learner.zero_stage == 3:
            reasons["share_vision"] = (
                "ZeRO-3 gathers weights inside of the whole forward only"
            )
        elif vision and what_is_shared(policy.model) == "nothing":
            reasons["share_vision"] = "the vision tower trains"
        vision = vision and "share_vision" not in reasons
        layers = fast.fused_layers
        if layers and not tree:
            reasons["fused_layers"] = "needs share_prompt"
        elif layers and (
            reason := decoder.why_not(
                language_model(policy.model), policy.model.config.vision_config
            )
        ):
            reasons["fused_layers"] = reason
        layers = layers and "fused_layers" not in reasons
        if (
            fast.fused_logps
            and learner.engine == "deepspeed"
            and learner.zero_stage == 3
        ):
            reasons["fused_logps"] = "ZeRO-3 splits the policy's head up"
        cache = _cache_folder(config)
        if cache is not None and set(losses) <= set(REFERENCE_FREE):
            reasons["reference_cache"] = "no loss of this run reads the reference"
        elif cache is not None and not tree:
            reasons["reference_cache"] = "needs share_prompt"
        elif cache is not None and learner.zero_stage == 3 and learner.num_ranks > 1:
            reasons["reference_cache"] = "ZeRO-3 needs all ranks in every forward"
        cache = None if "reference_cache" in reasons else cache
        onednn = fast.onednn and learner.num_gpus == 0 and products.mkl_is_slow()
        return cls(tree, vision, layers, onednn, cache, reasons)

    def apply(
        self, config: RunConfig, policy: Policy, reference: Policy | None
    ) -> None:
        """Switch policy and reference over."""
        models = [model for model in (policy, reference) if model is not None]
        shared = None
        if self.share_vision:
            shared = VisionShare(
                policy.model, config.learner.fast.vision_cache_mb << 20
            )
        for model in models:
            model.fused = config.learner.fast.fused_logps
            model.vision = shared
            if self.share_prompt:
                prepare(model.model, self.fused_layers)
            if self.onednn:
                products.install(model)


def _cache_folder(config: RunConfig) -> Path | None:
    name = config.learner.fast.reference_cache
    return {"off": None, "run": config.run.dir / "reference_logps"}.get(
        name, Path(name)
    )
