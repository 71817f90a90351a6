"""The records that travel between the rooms: plain frozen dataclasses, without pixels and without tensors.

    Prompt -> RolloutGroup (k Completions) -> Verdict (k scores) -> PreferencePair -> StepResult
                 actors                         reward                                learner

Images travel as `ImageRef`, a hash and a path; pixels are read where they are used. Completions travel as token ids,
so that the learner trains on exactly the tokens that were sampled. A `weight_version` counts published weights;
version 0 is the start policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image, identified by the SHA-256 of its encoded bytes.

    `path` is absolute in memory. A data set on disk stores it relative to its folder, so that the folder can move.
    """

    sha256: str
    path: str


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a message: a text, or the place where the prompt's next image stands."""

    kind: Literal["text", "image"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, its parts in order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy is asked: a conversation and its images.

    The n-th `image` part of the messages stands for `images[n]`. `reference` is a correct answer, where the data has
    one. `truth` is what a rule-based judge checks an answer against, made of JSON types (for the shapes world: the
    scene). The policy never sees `reference` or `truth`.
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...]
    reference: str | None = None
    truth: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    `token_ids` ends with the end-of-sequence token if and only if the policy produced it. `finish_reason` is "stop"
    also for an answer that a stop string ended, and "length" for one that reached its token limit.

    Weights may be swapped while an answer is being sampled: `min_weight_version` sampled its first token and
    `max_weight_version` its last.
    """

    token_ids: tuple[int, ...]
    text: str
    min_weight_version: int
    max_weight_version: int
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The k completions that were sampled for one prompt.

    `prompt_token_ids` is the sequence that the engine ran, with every image expanded into its `num_image_tokens`
    placeholder tokens (counted over all images). `id` is unique within a run: a prompt that returns in a later epoch
    gets a new group id.
    """

    id: str
    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    num_image_tokens: int
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's scores: one per completion of a group, in order, higher is better.

    `notes` explain the scores to people, one per completion, or are empty.
    """

    scores: tuple[float, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """One side of a pair. `token_ids` is None where the answer is only known as text, as in most offline data."""

    text: str
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one prompt, of which `chosen` is preferred over `rejected`.

    `source` names where the pair comes from (`common.sources`, or an importer's name) and decides its loss.
    `weight_version` is the oldest policy that sampled it; an offline pair has none and never goes stale.
    `prompt_token_ids` is the prompt as the engine ran it, and `scores` the judge's (chosen, rejected), where known.
    """

    id: str
    prompt: Prompt
    chosen: Response
    rejected: Response
    source: str
    weight_version: int | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    scores: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row, group or pair that is not used. `reason` is the short key it is counted under, `detail` is for people."""

    id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of one rollout group: its pairs, or the reason why it has none.

    Exactly one of `pairs` (then not empty) and `dropped` is set. `verdict` is None when the judge gave none.
    `chosen[i]` and `rejected[i]` say which of the group's completions the sides of `pairs[i]` are.
    """

    group_id: str
    pairs: tuple[PreferencePair, ...] = ()
    dropped: Dropped | None = None
    verdict: Verdict | None = None
    chosen: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert bool(self.pairs) != (self.dropped is not None), "pairs or a reason"
        assert len(self.chosen) == len(self.rejected) == len(self.pairs)


@dataclass(frozen=True, slots=True)
class SideLogps:
    """Summed log-probs (nats) of a pair's two responses and their lengths in tokens, end-of-sequence included."""

    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int

    def both(self, measure: str) -> tuple[float, float]:
        """(chosen, rejected) log-probs: summed for the measure "sum", per token for any other."""
        if measure == "sum":
            return self.chosen, self.rejected
        chosen = self.chosen / self.chosen_tokens
        rejected = self.rejected / self.rejected_tokens
        return chosen, rejected


@dataclass(frozen=True, slots=True)
class LogprobProbe:
    """The learner's log-probs (nats) of one response, one per token, under the weights it publishes.

    The engine scores the same response after a push; equal values prove that it runs the same weights.
    """

    prompt: Prompt
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """Describes one published set of weights. The tensors travel beside it, by reference.

    `checksum` covers names, shapes and bytes of all tensors. `change_norm` is the L2 norm of the difference from the
    start policy; it is 0 only when nothing was trained.
    """

    version: int
    checksum: str
    num_tensors: int
    num_bytes: int
    change_norm: float
    probe: LogprobProbe | None = None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """An engine's proof that it runs the weights of a manifest.

    `probe_error` is max |engine - learner| over the probe's token log-probs (nats), None without a probe. `seconds` is
    how long loading took.
    """

    version: int
    probe_error: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class StepResult:
    """One learner step: its metrics, already reduced over ranks, and the ids of the pairs it trained on."""

    step: int
    metrics: Mapping[str, float]
    pair_ids: tuple[str, ...] = field(default=())
