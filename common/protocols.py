"""The seams between the rooms. Algorithm code is written against these and knows no Ray, vLLM or DeepSpeed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from common.records import (
    Dropped,
    LoadReport,
    PreferencePair,
    Prompt,
    RolloutGroup,
    Verdict,
    WeightManifest,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from common.data.images import ImageStore
    from common.evaluation import (
        LegendEntry,
        Measurement,
        Metric,
        ShownAnswer,
        Split,
        SuiteAnswers,
        TaskPrompts,
        Wins,
    )

Tensors = Mapping[str, "np.ndarray[Any, Any]"]
"""Weights in flight: hub parameter name -> array. bfloat16 travels as `uint16` bits under the name + "@bfloat16"."""


@dataclass(frozen=True, slots=True)
class ImageNoise:
    """Diffusion noise of a step (of 1000) on the pixels of a prompt's images, see common/data/diffusion_noise.py."""

    step: int
    seed: int


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to be completed `num_completions` times; `id` becomes the id of the group.

    `temperature` 0 is greedy. `prefix` is text the answer already begins with; its tokens are not part of the
    completion. `visible_image_tokens` keeps only these image-token indices of the (single) image in the sequence: the
    shortened sequence of BDHS; None keeps the whole image, () leaves the image out. `noise` is laid on whole images
    where they are read, so no noised image is ever stored. `stop` strings end a completion and stay in its text.
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

    def __post_init__(self) -> None:
        assert self.visible_image_tokens is None or self.noise is None, (
            "noise is laid on whole images only"
        )


class Engine(Protocol):
    """Generates with one set of weights at a time and says which one each token came from."""

    @property
    def weight_version(self) -> int: ...

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> list[RolloutGroup | Dropped]:
        """One result per request, in order. A request that cannot be run comes back as Dropped, never cut."""
        ...

    async def token_logprobs(
        self, prompt: Prompt, token_ids: Sequence[int]
    ) -> tuple[float, ...]:
        """Log-prob (nats) of each token of a given response under the current weights."""
        ...

    async def score(
        self, answers: Sequence[tuple[Prompt, str]]
    ) -> list[tuple[float, ...] | Dropped]:
        """Log-probs (nats) of the tokens of whole answers, end-of-sequence token included; one result per answer."""
        ...

    async def load_weights(
        self, manifest: WeightManifest, tensors: Tensors
    ) -> LoadReport:
        """Swap the weights between two engine steps, drop what was cached under the old ones, prove the new ones."""
        ...

    async def close(self) -> None: ...


class Judge(Protocol):
    """Scores the completions of rollout groups. It never makes a verdict up."""

    @property
    def name(self) -> str:
        """What drops and logs call it."""
        ...

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        """One verdict per group, in order, or the reason why asking about this group again cannot help.

        Raises:
            JudgeError: it failed for now, on any of these groups; asking again may help.
        """
        ...


class JudgeError(RuntimeError):
    """The judge has no verdict. After the retries the group is dropped and counted."""


class Suite(Protocol):
    """What a policy is asked, and how its answers are measured. Suites know no engine, worker or page.

    The prompts of a suite belong to named tasks, such as captions and questions.
    """

    @property
    def name(self) -> str:
        """What the scorecard calls it."""
        ...

    @property
    def selecting_tasks(self) -> Sequence[str]:
        """Tasks whose answers pick a checkpoint; validation asks no others."""
        ...

    @property
    def compared_tasks(self) -> Sequence[str]:
        """Tasks whose answers the judge compares with those of the start policy."""
        ...

    @property
    def shown_tasks(self) -> Sequence[str]:
        """Tasks whose answers the samples page shows."""
        ...

    @property
    def unit(self) -> str:
        """What one row of the samples page is, in the plural: "scenes"."""
        ...

    @property
    def legend(self) -> Sequence[LegendEntry]:
        """What the marks of `show` mean."""
        ...

    def prompts(self, split: Split, store: ImageStore) -> TaskPrompts:
        """The prompts of a split by task; images are put into `store`. The same in every run, whatever its seed."""
        ...

    def measure(
        self, answers: SuiteAnswers, wins: Wins | None, num_samples: int
    ) -> Measurement:
        """Measure one policy's answers.

        Args:
            answers: to the prompts of one split.
            wins: of the `compared_tasks`; empty when nothing was compared, None when this *is* the start policy.
            num_samples: bootstrap draws of the intervals.
        """
        ...

    def selection(self, metrics: Mapping[str, Metric]) -> float | None:
        """The number in 0-1 that picks a checkpoint, higher is better; None when it cannot be measured."""
        ...

    def show(self, prompt: Prompt, text: str) -> ShownAnswer:
        """How the samples page shows an answer to one of `shown_tasks`."""
        ...

    def heldout_pairs(self, prompts: TaskPrompts, limit: int) -> list[PreferencePair]:
        """Right answers over wrong ones for the grounding gate, at most `limit`; empty when the suite has no such."""
        ...


class TrainEngine(Protocol):
    """Owns a module, its optimizer and schedule; the learner only computes losses."""

    rank: int
    world_size: int

    @property
    def module(self) -> torch.nn.Module: ...

    def backward(self, loss: torch.Tensor) -> None: ...

    def step(self) -> Mapping[str, float]:
        """Clip, update, schedule, zero the gradients. Returns `grad_norm` and `lr`."""
        ...

    def gather_weights(
        self, wanted: Callable[[str], bool] = lambda name: True
    ) -> Mapping[str, torch.Tensor] | None:
        """Full parameters by module name on rank 0 (None elsewhere), those whose name is wanted."""
        ...

    def place_frozen(self, module: torch.nn.Module) -> torch.nn.Module:
        """Bring a module that is never trained beside the policy; what comes back is called in its place."""
        ...

    def gathered(
        self, module: torch.nn.Module, wanted: Callable[[str], bool] = lambda name: True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Wanted parameters of the policy, or of what was given to `place_frozen`, by name (collective).

        Each is whole until the next is asked for.
        """
        ...

    def save(self, directory: Path) -> None: ...

    def load(self, directory: Path) -> None: ...

    def close(self) -> None: ...


class Handle(Protocol):
    """A worker somewhere. A reference passed on as an argument is read by the receiver, never by the caller."""

    def call(self, method: str, *args: Any) -> Awaitable[Any]:
        """Starts the method and returns at once with a reference that can be awaited or passed on."""
        ...

    def call_split(
        self, method: str, num_returns: int, *args: Any
    ) -> Sequence[Awaitable[Any]]:
        """The same for a method that returns a tuple: one reference per element."""
        ...


class Runtime(Protocol):
    """Starts plain classes as workers: as Ray actors, or in this process for tests."""

    def spawn(
        self, worker: type, *args: Any, name: str, num_cpus: float, num_gpus: float
    ) -> Handle: ...

    def stop(self, handle: Handle) -> None: ...

    def shutdown(self) -> None: ...
