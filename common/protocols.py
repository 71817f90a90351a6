"""The seams between the rooms: what one part of the system may expect of another.

    Engine       samples and scores answers                   vLLM, in actors/
    Judge        scores groups of answers                     reward/judges/
    Eye          answers a judge's questions about pictures   reward/eyes/
    Suite        asks a policy and measures its answers       reward/suites/
    TrainEngine  owns module and optimizer                    DeepSpeed or plain torch, in learner/engines/
    Runtime      starts workers, of which Handle calls one    Ray or this process, in cluster/runtime/

Algorithm code is written against these protocols. It knows no Ray, vLLM or DeepSpeed, and tests give it small classes
of their own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from common.records import (
    Dropped,
    LoadReport,
    LogprobProbe,
    PreferencePair,
    ProbeReading,
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
        Comparison,
        LegendEntry,
        Measurement,
        MetricInfo,
        ShownAnswer,
        Split,
        SuiteAnswers,
        TaskPrompts,
    )

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

    async def calibrate(self, probe: LogprobProbe) -> ProbeReading:
        """How far its log-probs are from the learner's while both hold the start policy.

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


class Judge(Protocol):
    """Scores the completions of rollout groups. It never makes a verdict up."""

    @property
    def name(self) -> str:
        """What drops and logs call it."""
        ...

    async def judge(
        self,
        groups: Sequence[RolloutGroup],
    ) -> Sequence[Verdict | Dropped | JudgeError]:
        """One verdict per group, in order. A Dropped in its place says why asking about the group again cannot help.

        A JudgeError in its place says that it failed on this group for now; asking again may help.

        Raises:
            JudgeError: the same about all of these groups, or about any of them.
            Halted: it cannot go on at all; the run stops with its state saved.
        """
        ...


class JudgeError(RuntimeError):
    """The judge has no verdict. After the retries the group is dropped and counted."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a judge asks a vision-language model.

    Attributes:
        prompt: a conversation with its images, as the model is given it. Its id names the question in drops.
        options: answers of which the log-probs are wanted, such as ("yes", "no") or the grades; () asks for a text.
        max_tokens: of a text.
    """

    prompt: Prompt
    options: tuple[str, ...] = ()
    max_tokens: int = 512


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a question: a text, or one log-prob (nats) per option; -inf for an option that is not likely.

    An option's log-prob is that of its beginning, up to the token that tells it from the other options. An eye that
    cannot tell log-probs answers with a text instead, and leaves `logprobs` empty.
    """

    text: str = ""
    logprobs: tuple[float, ...] = ()


class Eye(Protocol):
    """A vision-language model that judges put their questions to: a torch model, vLLM engines, or a server."""

    @property
    def name(self) -> str:
        """What drops and logs call it."""
        ...

    async def ask(self, questions: Sequence[Question]) -> list[Reply | Dropped]:
        """One reply per question, in order. A Dropped says why asking again cannot help.

        Raises:
            JudgeError: it failed for now; asking again may help.
            Halted: no question can be asked any more, such as when a budget is used up.
        """
        ...


class Suite(Protocol):
    """What a policy is asked, and how its answers are measured. A suite knows no engine, worker or page.

    The prompts of a suite belong to named tasks, such as "captions" and "questions". `reward.suites.base.BaseSuite`
    has defaults for what few suites need.
    """

    @property
    def name(self) -> str:
        """What the scorecard calls it."""
        ...

    @property
    def metrics(self) -> Mapping[str, MetricInfo]:
        """The metrics that `evaluation.select` may name, in the order of the tables."""
        ...

    @property
    def selecting_metric(self) -> str:
        """The one of `metrics` that picks a checkpoint unless `evaluation.select` names another; a share in 0-1.

        "" for a suite that has none.
        """
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
        """What the samples page calls its rows, such as "scenes"."""
        ...

    @property
    def legend(self) -> Sequence[LegendEntry]:
        """What the marks of `show` mean."""
        ...

    def prompts(
        self,
        split: Split,
        store: ImageStore,
        dropped: list[Dropped],
    ) -> TaskPrompts:
        """The prompts of a split by task, the same in every run, whatever its seed.

        Args:
            store: takes the pictures.
            dropped: collects the rows of a file that are no prompt.
        """
        ...

    def pairs(
        self,
        split: Split,
        store: ImageStore,
        dropped: list[Dropped],
    ) -> Sequence[PreferencePair]:
        """Pairs whose log-probs are measured; most suites have none. Arguments as of `prompts`."""
        ...

    def measure(
        self,
        answers: SuiteAnswers,
        comparison: Comparison | None,
        num_samples: int,
    ) -> Measurement:
        """Measure one policy's answers.

        Args:
            answers: to the prompts of one split.
            comparison: with the start policy; None when this *is* the start policy.
            num_samples: bootstrap draws of the intervals.
        """
        ...

    def show(self, prompt: Prompt, text: str) -> ShownAnswer:
        """How the samples page shows an answer to one of `shown_tasks`."""
        ...

    def answer_files(self, answers: SuiteAnswers, policy: str) -> Mapping[str, str]:
        """The files that official evaluators read, name -> content; {} when there are none. They call the policy so."""
        ...

    def heldout_pairs(self, prompts: TaskPrompts, limit: int) -> list[PreferencePair]:
        """At most `limit` pairs of a right over a wrong answer, for the grounding gate; [] when the suite has none."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """Where a rank keeps the master weights and Adam's moments of a stretch of one parameter's elements.

    Attributes:
        name, shape: of the whole parameter.
        start, numel: the stretch of the flattened parameter.
        tensor: what the optimizer steps, and keys its state by; other parameters may lie in it, too.
        offset: where the stretch begins in the flattened tensor.
        replicated: all ranks keep the same.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    tensor: torch.Tensor
    offset: int
    replicated: bool = False


class TrainEngine(Protocol):
    """Owns a module, its optimizer and schedule, on one of `world_size` ranks. The learner only computes losses."""

    rank: int
    world_size: int

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Steps the tensors of the slots."""
        ...

    @property
    def schedule(self) -> torch.optim.lr_scheduler.LambdaLR:
        """Counts applied updates."""
        ...

    @property
    def module(self) -> torch.nn.Module: ...

    def backward(self, loss: torch.Tensor) -> None: ...

    def step(self) -> Mapping[str, float]:
        """Clip, update, schedule, zero the gradients. Returns `grad_norm` and `lr`."""
        ...

    def gather_weights(
        self,
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> Mapping[str, torch.Tensor] | None:
        """Whole parameters by module name, those whose name is wanted: on rank 0, None elsewhere. All ranks call it."""
        ...

    def place_frozen(self, module: torch.nn.Module) -> torch.nn.Module:
        """Bring a module that is never trained to the policy's device. The returned module is called in its place."""
        ...

    def gathered(
        self,
        module: torch.nn.Module,
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Wanted parameters of the policy, or of a module from `place_frozen`, by name. All ranks call it.

        Only one parameter is whole at a time: it is cut up again when the next one is asked for.
        """
        ...

    def whole(
        self, parameters: Sequence[torch.nn.Parameter]
    ) -> AbstractContextManager[None]:
        """All of these are whole on all ranks as long as this lasts. All ranks call it, with the same ones."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of all trained parameters by name, whoever keeps their state."""
        ...

    def slots(self) -> Sequence[Slot]:
        """What this rank keeps of the optimizer's state, in the order of the parameters."""
        ...

    def restoring(self) -> AbstractContextManager[None]:
        """While it lasts the slots are filled; afterwards the module has the weights of the masters. Collective."""
        ...

    def close(self) -> None: ...


class Handle(Protocol):
    """A worker, perhaps in another process or on another machine.

    Calls return references to results. A reference may be an argument of another call: its value then goes to that
    worker directly, never through the caller.
    """

    def call(self, method: str, *args: Any) -> Awaitable[Any]:
        """Start the method and return at once, with a reference that can be awaited or passed on."""
        ...

    def call_split(
        self,
        method: str,
        num_returns: int,
        *args: Any,
    ) -> Sequence[Awaitable[Any]]:
        """The same for a method that returns a tuple: one reference per element."""
        ...

    def pulse(self) -> Awaitable[Pulse]:
        """What it says of itself, beside whatever it works on."""
        ...

    def death(self, error: BaseException) -> str | None:
        """Why this worker is dead, when the error of a call to it says that it is; None otherwise."""
        ...


@dataclass(frozen=True, slots=True)
class Sight:
    """What an actor sees from where it is.

    Attributes:
        host: name of its machine.
        folder: where it looks for relative paths.
        gpus: numbers of the GPUs that it may use, as CUDA reads them.
        nonce: content of the run's nonce file; None where it cannot be read.
        missing: of the paths asked about.
    """

    host: str
    folder: str
    gpus: str
    nonce: str | None
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Process:
    """A process on a worker's machine.

    Attributes:
        started: when, in clock ticks since the machine's start: a number that another process takes later tells it.
    """

    pid: int
    name: str
    started: int


@dataclass(frozen=True, slots=True)
class Vitals:
    """How a worker's engine is. A worker without one has no method `vitals`.

    Attributes:
        fault: why it cannot go on; "" when it can.
        silent_s: how long it has not answered.
    """

    fault: str = ""
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a worker tells of itself at any time, whatever it works on.

    Attributes:
        host: name of its machine.
        log: its output's file on that machine; "" where it has none.
        processes: its process first, then those that it has started.
    """

    host: str
    log: str
    processes: tuple[Process, ...]
    vitals: Vitals = Vitals()


class Runtime(Protocol):
    """Starts plain classes as workers: as Ray actors, or in this process for tests."""

    def spawn(
        self,
        worker: type,
        *args: Any,
        name: str,
        num_cpus: float,
        num_gpus: float,
    ) -> Handle: ...

    async def make_room(self, name: str) -> None:
        """Wait until there is a place for another worker of this name: its machine may have left.

        Raises:
            UserError: there was none in time.
        """
        ...

    def survey_nodes(self, nonce_file: str) -> Mapping[str, Awaitable[Sight]]:
        """What every node of the run sees of this file, by the name of an actor that will be there."""
        ...

    def show(self, values: Mapping[str, float]) -> None:
        """Let whoever watches the cluster see metrics of the run."""
        ...

    def stop(self, handle: Handle) -> None: ...

    async def bury(self, handle: Handle, pulse: Pulse | None) -> None:
        """Stop a worker that may be dead or may not answer, and wait until its processes are gone.

        `pulse` is the last one; a machine that is gone as well is not waited for.
        """
        ...

    def shutdown(self) -> None: ...
