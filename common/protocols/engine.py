"""Samples and scores answers: vLLM, in actors/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from common.records import (
    Dropped,
    LoadReport,
    LogprobProbe,
    ProbeReading,
    Prompt,
    RolloutGroup,
    WeightManifest,
)

if TYPE_CHECKING:
    import numpy as np

Tensors = Mapping[str, "np.ndarray[Any, Any]"]
"""Weights on their way to an engine: hub parameter name -> array.

numpy has no bfloat16: such a tensor travels as its bits, `uint16`, under the name + "@bfloat16".
"""


@dataclass(frozen=True, slots=True)
class ImageNoise:
    """Diffusion noise on the pixels of a prompt's images: of `step` (of 1000), see common/data/diffusion_noise.py."""

    step: int
    seed: int


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to be completed `num_completions` times.

    Attributes:
        id: becomes the id of the group.
        prompt: what is asked.
        num_completions: k.
        temperature: 0 is greedy.
        max_tokens: of one completion.
        seed: of the sampling; None leaves it to the engine.
        top_p: share of the probability mass that tokens are sampled from.
        prefix: text that the answer begins with. Its tokens are not part of the completion.
        stop: strings that end a completion and stay in its text.
        visible_image_tokens: BDHS: the indices of the image tokens that stay in the sequence, for a prompt with one
            image. None keeps all of them, () none.
        noise: laid on whole images where they are read, so no noised image is ever stored.
        logprobs: whether the completions bring `token_logprobs`.
    """

    id: str
    prompt: Prompt
    num_completions: int
    temperature: float
    max_tokens: int
    seed: int | None = None
    top_p: float = 1.0
    prefix: str = ""
    stop: tuple[str, ...] = ()
    visible_image_tokens: tuple[int, ...] | None = None
    noise: ImageNoise | None = None
    logprobs: bool = False

    def __post_init__(self) -> None:
        assert self.visible_image_tokens is None or self.noise is None, (
            "noise is laid on whole images only"
        )


class Engine(Protocol):
    """Generates with one set of weights at a time, and says which one sampled the first and last token of an answer."""

    @property
    def weight_version(self) -> int:
        """The version of the weights that it runs now."""
        ...

    async def generate(
        self,
        requests: Sequence[GenerationRequest],
    ) -> list[RolloutGroup | Dropped]:
        """One result per request, in order. A request that cannot be run comes back as Dropped, never cut."""
        ...

    async def token_logprobs(
        self,
        prompt: Prompt,
        token_ids: Sequence[int],
    ) -> tuple[float, ...]:
        """Log-prob (nats) of each token of a given response under the current weights."""
        ...

    async def score(
        self,
        answers: Sequence[tuple[Prompt, str]],
    ) -> list[tuple[float, ...] | Dropped]:
        """Log-probs (nats) of the tokens of whole answers, end-of-sequence token included; one result per answer."""
        ...

    async def calibrate(
        self, probe: LogprobProbe, proven: ProbeReading | None = None
    ) -> ProbeReading:
        """How far its log-probs are from the learner's while both hold the start policy.

        Args:
            proven: what a push of version 0 measured on another engine. It counts where the learner's start policy is
                quantised, and thus not what an engine starts with.

        Raises:
            RuntimeError: so far that it holds another model.
        """
        ...

    async def load_weights(
        self,
        manifest: WeightManifest,
        tensors: Tensors,
    ) -> LoadReport:
        """Swap the weights between two engine steps.

        What was cached under the old weights is dropped. The probe of the manifest proves the new ones.

        Raises:
            UserError: the tensors are not those of the manifest and the model; the old weights stay.
            RuntimeError: the engine does not run the new weights, or takes too long.
        """
        ...

    async def sleep(self, level: int) -> None:
        """Free the GPU memory until `wake`, and all caches; no request may be running.

        Level 1 keeps the weights. Level 2 drops them: weights must be loaded after `wake`.
        """
        ...

    async def wake(self) -> None:
        """Take the memory back; what was sampled before is not remembered."""
        ...

    async def close(self) -> None: ...
