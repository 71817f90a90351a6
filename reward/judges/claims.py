"""A judge that takes answers apart: a vision-language model is asked yes or no about every claim of a completion.

    "There is a red circle at the top. There is a blue star." -> "Is there a circle in the image?" "Is there a star …?"

The score is minus the number of claims that the model denies (divide and conquer, RLAIF-V, arXiv 2405.17220).
A repeated claim, a completion that claims nothing and one that is cut off count as one more denial each. The judge
never looks at the truth, so it is as weak as its model, and what a completion leaves out costs nothing.

Which claims a text makes is a splitter's business (`reward/judges/splitting.py`; a world may have its own, such as
`reward/shapes_world.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from common.protocols import Eye, JudgeError, Question, Reply
from common.records import Completion, Dropped, Prompt, RolloutGroup, Verdict
from reward.judges.faults import Fault, fault_of, judge_each
from reward.judges.prompts import about_images
from reward.judges.readings import probabilities, read_yes_no


class Splitter(Protocol):
    """Takes texts apart into claims."""

    async def split(
        self,
        prompt: Prompt,
        texts: Sequence[str],
    ) -> list[list[str] | Fault]:
        """The claims of each text, repeats included, or why they cannot be told."""
        ...


@dataclass(frozen=True, slots=True)
class ClaimLanguage:
    """How to talk about claims.

    Attributes:
        question_of: the yes/no question about one claim of an answer to a prompt.
        yes, no: the model's answers.
        nothing_claimed: the note of a text without a claim.
        reads_logprobs: whether the likelier of yes and no counts, or what is written.
        max_tokens: of a written answer.
    """

    question_of: Callable[[Prompt, str], str]
    yes: str
    no: str
    nothing_claimed: str
    reads_logprobs: bool = True
    max_tokens: int = 64


class ClaimsJudge:
    """Scores completions by what `eye` says of their claims."""

    def __init__(
        self,
        name: str,
        eye: Eye,
        splitter: Splitter,
        language: ClaimLanguage,
    ) -> None:
        self.name = name
        self._eye = eye
        self._splitter = splitter
        self._language = language

    async def judge(
        self,
        groups: Sequence[RolloutGroup],
    ) -> list[Verdict | Dropped | JudgeError]:
        """One verdict per group, in order: scores of at most 0, and notes that name what was denied.

        Returns:
            Dropped as `unreadable` for a group of which a claim was neither denied nor confirmed, as `judge_failed`
            for one that the eye could not be asked about.
        """
        return await judge_each(self._judge_group, groups)

    async def _judge_group(
        self,
        group: RolloutGroup,
    ) -> Verdict | Dropped:
        texts = [completion.text for completion in group.completions]
        split = await self._splitter.split(group.prompt, texts)
        counts_by_answer: list[Counter[str]] = []
        all_claims: set[str] = set()
        for claims in split:
            if isinstance(claims, Fault):
                return claims.drop(
                    group.id, self.name, len(counts_by_answer), len(texts)
                )
            counts_by_answer.append(Counter(claims))
            all_claims.update(claims)
        # A question is what judging costs: no claim is asked about twice.
        answers = await self._ask(group, sorted(all_claims))
        denied: set[str] = set()
        for claim, seen in answers.items():
            if isinstance(seen, Fault):
                num_read = sum(isinstance(seen, bool) for seen in answers.values())
                return seen.drop(group.id, self.name, num_read, len(answers))
            if not seen:
                denied.add(claim)
        scores: list[float] = []
        notes: list[str] = []
        for completion, counts in zip(group.completions, counts_by_answer, strict=True):
            faults = self._faults(completion, counts, denied)
            # Not -len(faults): no doubt scores 0.0, not -0.0.
            scores.append(0.0 - len(faults))
            notes.append("; ".join(faults) or "no doubt")
        return Verdict(tuple(scores), tuple(notes))

    async def _ask(
        self,
        group: RolloutGroup,
        claims: Sequence[str],
    ) -> Mapping[str, bool | Fault]:
        """What the eye says of each claim."""
        language = self._language
        options = (language.yes, language.no) if language.reads_logprobs else ()
        questions: list[Question] = []
        for index, claim in enumerate(claims):
            text = language.question_of(group.prompt, claim)
            shown = about_images(group.prompt, f"{group.id}/{index}", text)
            questions.append(Question(shown, options, language.max_tokens))
        replies = await self._eye.ask(questions) if questions else []
        answers: dict[str, bool | Fault] = {}
        for claim, reply in zip(claims, replies, strict=True):
            answers[claim] = self._read(reply)
        return answers

    def _read(
        self,
        reply: Reply | Dropped,
    ) -> bool | Fault:
        if isinstance(reply, Dropped):
            return fault_of(reply)
        if reply.logprobs:
            shares = probabilities(reply.logprobs)
            return fault_of(reply) if shares is None else shares[0] > 0.5
        seen = read_yes_no(reply.text, self._language.yes, self._language.no)
        return fault_of(reply) if seen is None else seen

    def _faults(
        self,
        completion: Completion,
        claims: Counter[str],
        denied: set[str],
    ) -> list[str]:
        """One note per denial; all of them cost the same."""
        faults: list[str] = []
        for claim in claims:
            if claim in denied:
                faults.append(f"denied {claim}")
        for claim, count in claims.items():
            num_repeats = count - 1
            faults += [f"repeated {claim}"] * num_repeats
        # Silence and a cut would otherwise be the best way to avoid denials.
        if not claims:
            faults.append(self._language.nothing_claimed)
        if completion.finish_reason == "length":
            faults.append("cut off")
        return faults
