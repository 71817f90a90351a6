"""The records that travel between the rooms: plain frozen dataclasses, without pixels and without tensors.

    Prompt ──actors──▶ RolloutGroup ──reward──▶ Judged ──▶ PreferencePair ──learner──▶ StepResult
                       k Completions            a Verdict: k scores

The actors sample k completions of a prompt. The reward worker scores them and makes preference pairs, for example of
the best and the worst. The learner trains on batches of pairs and publishes its weights to the actors, described by a
`WeightManifest`.

Three rules hold for all of them:

    images are references      An `ImageRef` is a hash and a path; pixels are read where they are used.
    answers are token ids      So the learner trains on exactly the tokens that were sampled.
    weights have a version     A `weight_version` counts published weights; version 0 is the start policy.

Where something cannot be used, a `Dropped` with the reason takes its place, so that it is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image, identified by the SHA-256 of its file's bytes.

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
    """What the policy is asked: a conversation and its images. The policy sees neither `reference` nor `truth`.

    Attributes:
        id: unique in its data set.
        messages: the conversation. Its n-th part of kind "image" stands for `images[n]`.
        images: in the order of their parts.
        reference: a correct answer, where the data has one.
        truth: what a rule-based judge checks an answer against, made of JSON types. For the shapes world: the scene.
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...]
    reference: str | None = None
    truth: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    Attributes:
        token_ids: the sampled tokens. They end with the end-of-sequence token if and only if the policy produced it.
        text: the decoded tokens.
        min_weight_version: the weights that sampled the first token. Weights may be swapped during an answer.
        max_weight_version: the weights that sampled the last token.
        finish_reason: "stop" for an answer that the end-of-sequence token or a stop string ended, "length" for one that
            reached its token limit.
        token_logprobs: the log-prob (nats) of every token under the weights that sampled it, at temperature 1. None
            where no loss reads it.
    """

    token_ids: tuple[int, ...]
    text: str
    min_weight_version: int
    max_weight_version: int
    finish_reason: FinishReason
    token_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The k completions that were sampled for one prompt.

    Attributes:
        id: unique within a run: a prompt that returns in a later epoch gets a new group id.
        prompt: what was asked.
        prompt_token_ids: the sequence that the engine ran, with every image expanded into its placeholder tokens.
        num_image_tokens: number of placeholder tokens, of all images together.
        completions: the k answers.
    """

    id: str
    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    num_image_tokens: int
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's scores for a group: one per completion, in order, higher is better.

    Attributes:
        scores: one per completion.
        notes: what explains the scores to people: one per completion, or none at all.
        first_wins: of a judge that compares answers in both orders: what the answers won that were shown first, a mean
            in 0-1; 0.5 is no preference for a place. None where nothing was compared.
        members: of an ensemble, the name of every judge in it and that judge's own scores; no two names are equal.
    """

    scores: tuple[float, ...]
    notes: tuple[str, ...] = ()
    first_wins: float | None = None
    members: tuple[tuple[str, tuple[float, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """One side of a pair.

    Attributes:
        text: the decoded tokens.
        token_ids: None where only the text is known, as in most offline data.
        token_logprobs: as of `Completion`.
    """

    text: str
    token_ids: tuple[int, ...] | None = None
    token_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one prompt, of which `chosen` is preferred over `rejected`.

    Attributes:
        id: unique in a run or data set.
        prompt: what both sides answer.
        chosen: the better answer.
        rejected: the worse answer.
        source: where the pair comes from: a name of `common.sources`, or an importer's. It decides the pair's loss.
        weight_version: the oldest weights that sampled it. An offline pair has none and never goes stale.
        prompt_token_ids: the prompt as the engine ran it, where known.
        scores: the judge's for (chosen, rejected), where known.
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
    """A row, group or pair that is not used, and why.

    `reason` is a short key, under which drops are counted. `detail` says more, to people.
    """

    id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of one rollout group: its pairs, or the reason why it has none.

    Attributes:
        group_id: of the group.
        pairs: at least one, unless the group was dropped.
        dropped: why there are no pairs; None if there are.
        verdict: the judge's scores; None when the judge gave none.
        chosen: `chosen[i]` is the index of the group's completion that is the chosen side of `pairs[i]`.
        rejected: the same for the rejected sides.
    """

    group_id: str
    pairs: tuple[PreferencePair, ...] = ()
    dropped: Dropped | None = None
    verdict: Verdict | None = None
    chosen: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        has_pairs = len(self.pairs) > 0
        is_dropped = self.dropped is not None
        assert has_pairs != is_dropped, "pairs or a reason"
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
class ProbeAnswer:
    """An answer to a prompt of the run's own data, or its beginning, that learner and engines both score."""

    prompt: Prompt
    token_ids: tuple[int, ...]


LIKELIEST = 8
"""How many of the likeliest tokens a probe knows at every place of an answer."""
TokenLogprobs: TypeAlias = Mapping[int, float]
"""Log-probs (nats) by token id at one place of an answer: of its likeliest tokens, and of the one that stands there."""
AnswerLogprobs: TypeAlias = Sequence[TokenLogprobs]
"""One entry per token of an answer."""


@dataclass(frozen=True, slots=True)
class LogprobProbe:
    """What the learner makes of a few answers; an engine scores the same ones after a push.

    Attributes:
        answers: what is scored.
        logprobs: under the learner's weights of this moment, one entry per answer.
    """

    answers: tuple[ProbeAnswer, ...]
    logprobs: tuple[AnswerLogprobs, ...]


@dataclass(frozen=True, slots=True)
class ProbeReading:
    """How far an engine's log-probs of the probe are from the learner's (nats).

    "abs" is |engine - learner| at the tokens of the answers. "kl" is KL(learner || engine) at their places, over the
    likeliest tokens and one bucket for all others, which is at most the whole one.

    Attributes:
        abs_mean, kl_mean: over all tokens of all answers.
        abs_worst, kl_worst: the largest mean of one answer: what a mean over many answers would hide.
        abs_max, kl_max: of one token.
        load: the largest share of its limit that one of the first four has; above 1 the push is refused.
        warning: what a person should hear of a push that is taken; "" for nothing.
        seconds: how long the engine took to score the answers.
    """

    abs_mean: float
    kl_mean: float
    abs_worst: float
    kl_worst: float
    abs_max: float
    kl_max: float
    load: float = 0.0
    warning: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """Describes one published set of weights. The tensors travel beside it, by reference.

    Attributes:
        version: the number of this publication; the start policy is 0.
        checksum: over names, dtypes, shapes and bytes of all tensors (`common.weights.checksum`).
        num_tensors: how many there are.
        num_bytes: of all of them.
        change_norm: L2 norm of the difference from the start policy; 0 only when nothing was trained.
        probe: what an engine proves the weights with.
        merged_survives: the share of a LoRA update that merging into the weights' dtype leaves of it
            (`learner.model.merging`); None where nothing is merged.
    """

    version: int
    checksum: str
    num_tensors: int
    num_bytes: int
    change_norm: float
    probe: LogprobProbe | None = None
    merged_survives: float | None = None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """An engine's proof that it runs the weights of a manifest.

    Attributes:
        version: of the manifest.
        probe: how far its log-probs are from the learner's; None without a probe.
        seconds: how long loading took.
        pause_s: for how long of it the engine sampled nothing.
    """

    version: int
    probe: ProbeReading | None
    seconds: float
    pause_s: float = 0.0

    @property
    def probe_error(self) -> float | None:
        """max |engine - learner| over the probe's token log-probs (nats)."""
        return None if self.probe is None else self.probe.abs_max


@dataclass(frozen=True, slots=True)
class WriteReport:
    """Files that were written beside the learner's steps have come to their end.

    Attributes:
        fault: why they are not whole, such as a full disk; None when they are.
    """

    fault: str | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """One learner step: its number, its metrics reduced over all ranks, and the ids of the pairs it trained on.

    Attributes:
        margins: pair -> its implicit reward margin before the step's update.
    """

    step: int
    metrics: Mapping[str, float]
    pair_ids: tuple[str, ...] = field(default=())
    margins: Mapping[str, float] = field(default_factory=dict)
