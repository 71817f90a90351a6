"""What happens before the first step: ranks meet, the policy is loaded, an engine takes it, and so for the reference.

No rank holds more of a model on its CPU than what stays there and one parameter (`learner.model.streaming`):

    ZeRO-3       every parameter is split up over the ranks as soon as it is loaded
    ZeRO 0-2     each rank keeps the whole policy; on a GPU the weights go straight to it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from common.chat import ChatEncoder, encoder_of
from common.config import Lora, RunConfig
from common.errors import UserError
from common.protocols import TrainEngine
from learner.batch.ahead import PromptsAhead
from learner.batch.collate import Collator
from learner.losses.objective import crop_of
from learner.model.fast_path import FastPath
from learner.model.models import Models
from learner.model.policy import Policy, load_policy, load_reference
from learner.model.reference import Reference, is_needed_at_times
from learner.model.reference_cache import ReferenceCache, identity
from learner.model.streaming import Place
from learner.model.vision_features import VisionShare


@dataclass(frozen=True, slots=True)
class Start:
    """How one rank of a run starts."""

    config: RunConfig
    model_path: str
    rank: int = 0
    world_size: int = 1

    def device(self) -> torch.device:
        """Where this rank trains.

        Raises:
            UserError: it is a GPU, and there is none.
        """
        num_gpus = self.config.learner.num_gpus
        if num_gpus == 0:
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise UserError(
                f"learner.num_gpus: expected a CUDA device, got none for num_gpus = {num_gpus}; "
                "set learner.num_gpus = 0 or start on a GPU machine"
            )
        return torch.device("cuda")

    def join(self, master_address: str, master_port: int) -> None:
        """Meet the other ranks (collective); rank 0 listens at the address.

        Raises:
            UserError: the ranks do not meet in time.
        """
        learner = self.config.learner
        if learner.engine == "torch":
            return
        from learner.engines.deepspeed_engine import join_ranks

        join_ranks(learner, self.rank, self.world_size, master_address, master_port)

    def policy(self) -> Policy:
        """The policy as it starts (collective); ranks have met.

        Raises:
            UserError: the model cannot be loaded.
        """
        place = None
        if self.config.learner.zero_stage == 3:
            place = self._splitter()
        return load_policy(
            self.config.model,
            self.model_path,
            self.config.learner.gradient_checkpointing,
            self.device(),
            place,
        )

    def engine(self, policy: Policy) -> TrainEngine:
        """The engine that trains it (collective)."""
        learner = self.config.learner
        if learner.engine == "torch":
            from learner.engines.torch_engine import TorchEngine

            return TorchEngine(policy.to(self.device()), learner)
        from learner.engines.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(policy, learner, self.rank, self.world_size)

    def reference(self, policy: Policy) -> Callable[[], Policy] | None:
        """How the start policy is loaded once more, as a frozen model (collective under ZeRO-3); None for LoRA."""
        model = self.config.model
        learner = self.config.learner
        if isinstance(model.tuning, Lora):
            return None
        place: Place | None = None
        shares_tower_of: Policy | None = policy
        if learner.zero_stage == 3:
            from learner.engines.deepspeed_engine import splits_reference

            # The policy's parameters are split up, so nothing may be shared with it.
            shares_tower_of = None
            if splits_reference(learner, self.world_size):
                place = self._splitter()
        device = self.device()
        return lambda: load_reference(
            model, self.model_path, device, place, shares_tower_of
        )

    def models(
        self,
        policy: Policy,
        fast: FastPath,
        ahead: PromptsAhead | None,
    ) -> tuple[Models, Reference]:
        """Put policy and reference into the engine, and what makes their batches beside them (collective)."""
        config = self.config
        device = self.device()
        dtype: torch.dtype = getattr(torch, config.model.dtype)
        shared = fast.shared(config, policy)
        fast.apply(config, policy, shared)
        encoder = encoder_of(config.model, self.model_path)
        collator = Collator(
            encoder, tree=fast.share_prompt, crop_of=crop_of(config), ahead=ahead
        )
        cache = self._reference_cache(fast, encoder, dtype)
        engine = self.engine(policy)
        reference = Reference(
            engine,
            device,
            dtype,
            cache,
            self._reference_reader(policy, fast, shared),
            is_needed_at_times(config, cache is not None),
        )
        return Models(engine, reference, collator, device, dtype), reference

    def _reference_cache(
        self, fast: FastPath, encoder: ChatEncoder, dtype: torch.dtype
    ) -> ReferenceCache | None:
        folder = fast.reference_cache
        if folder is None:
            return None
        tuning = self.config.model.tuning
        quantize = tuning.quantize if isinstance(tuning, Lora) else "none"
        return ReferenceCache(folder, self.rank, identity(encoder, dtype, quantize))

    def _reference_reader(
        self, policy: Policy, fast: FastPath, shared: VisionShare | None
    ) -> Callable[[], Policy] | None:
        """Loads the reference of full tuning, and switches it over as the policy is."""
        load = self.reference(policy)
        if load is None:
            return None

        def read() -> Policy:
            model = load()
            fast.apply(self.config, model, shared)
            return model

        return read

    def _splitter(self) -> Place:
        from learner.engines.deepspeed_engine import Splitter

        is_bfloat16 = self.config.model.dtype == "bfloat16"
        return Splitter(self.config.learner, self.world_size, is_bfloat16)


def num_params(policy: torch.nn.Module) -> dict[str, int]:
    """`num_params` and `num_trainable_params` of a model, whatever a rank holds of it."""
    total, trainable = 0, 0
    for parameter in policy.parameters():
        # ZeRO-3 leaves each rank its part of a parameter only, and says how large the whole is.
        numel = getattr(parameter, "ds_numel", parameter.numel())
        total += numel
        if parameter.requires_grad:
            trainable += numel
    return {"num_params": total, "num_trainable_params": trainable}
