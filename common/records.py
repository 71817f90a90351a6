"""Records that travel between the rooms. Frozen, without pixels, and each explains itself.

Images travel as :class:`ImageRef`, completions as token ids: what was sampled is what is trained on.
`weight_version` counts published weights: 0 is the start policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image by content. `path` is absolute in memory; data sets on disk keep it relative to their own folder."""

    sha256: str
    path: str


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a message: a text, or the place of the next image."""

    kind: Literal["text", "image"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy is asked: messages and the images their `image` parts stand for, in order.

    `reference` is a ground-truth answer when the data has one; `truth` is what a rule-based judge needs
    (for the shapes world the scene itself). Neither is ever shown to the policy.
    """

    id: str
    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...]
    reference: str | None = None
    truth: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer. `token_ids` ends with the end-of-sequence token iff the policy ended it (`finish_reason` is
    "stop" for an answer ended by a stop string as well).

    The weights may change while it is being sampled: `min_weight_version` made its first token,
    `max_weight_version` its last.
    """

    token_ids: tuple[int, ...]
    text: str
    min_weight_version: int
    max_weight_version: int
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """k completions of one prompt. `prompt_token_ids` is the engine's own sequence, image tokens expanded.

    `id` is unique within a run (a prompt comes back in a later epoch under another group id).
    """

    id: str
    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    num_image_tokens: int
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's scores, one per completion of the group, higher is better. `notes` say why, for people."""

    scores: tuple[float, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """One side of a pair. `token_ids` is None when the answer is only known as text (offline data)."""

    text: str
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Chosen over rejected for one prompt. Offline pairs have no weight version and never go stale."""

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
    """A row, group or pair that is not used, and why. `reason` is a short counted key, `detail` is for people."""

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
    """Log-probs of a pair's whole responses in nats, end-of-sequence token included, and their lengths in tokens."""

    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int

    def both(self, measure: str) -> tuple[float, float]:
        """(chosen, rejected) as `sum` or `per_token`."""
        if measure == "sum":
            return self.chosen, self.rejected
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens


@dataclass(frozen=True, slots=True)
class LogprobProbe:
    """Log-probs (nats, one per response token) that the learner finds with the weights it publishes."""

    prompt: Prompt
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """Describes one published set of weights. The tensors travel beside it, by reference.

    `checksum` is over names, shapes and bytes of all tensors; `change_norm` is the L2 norm of the difference
    to the start policy, 0 only when nothing was trained.
    """

    version: int
    checksum: str
    num_tensors: int
    num_bytes: int
    change_norm: float
    probe: LogprobProbe | None = None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """An engine's proof that it runs the weights of a manifest. `probe_error` is max |Δ token log-prob| in nats."""

    version: int
    probe_error: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class StepResult:
    """One learner step: its metrics (already reduced over ranks) and the pairs it trained on."""

    step: int
    metrics: Mapping[str, float]
    pair_ids: tuple[str, ...] = field(default=())
