"""A judge that sees: a vision-language model is asked yes/no about every claim of a completion.

    "There is a red circle at the top. There is a blue star." -> "Is there a circle in the image?" "Is there a star …?"

The score is minus the number of claims that the model denies (divide and conquer, RLAIF-V, arXiv 2405.17220).
A repeated claim, a completion that claims nothing and one that is cut off count as one more denial each. The judge
never looks at the truth, so it is as weak as its model, and what a completion leaves out costs nothing.

Which claims a text makes, and how to ask about one, is a world's business: see `reward/shapes_world.py`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from transformers import AutoModelForImageTextToText

from common.chat import ChatEncoder
from common.config import PolicyJudge
from common.errors import Refused
from common.loading import readable
from common.protocols import JudgeError
from common.records import (
    Completion,
    Dropped,
    Message,
    Part,
    Prompt,
    RolloutGroup,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class ClaimLanguage:
    """How to talk about claims.

    Args:
        claims_of: the claims of a text, repeats included.
        question_of: the yes/no question about one claim.
        yes, no: the model's answers; they must differ in their first token.
        nothing_claimed: the note of a text without a claim.
    """

    claims_of: Callable[[str], list[str]]
    question_of: Callable[[str], str]
    yes: str
    no: str
    nothing_claimed: str


class ClaimsJudge:
    """Scores completions by the answers of the model in `settings.path`.

    Raises:
        UserError: the folder holds no model that can be loaded.
    """

    name = "policy"

    def __init__(self, settings: PolicyJudge, language: ClaimLanguage) -> None:
        self._language = language
        self._encoder = ChatEncoder(
            settings.path, settings.max_length, key="reward.judge.path"
        )
        with readable(
            settings.path, "reward.judge.path", "an architecture and weights"
        ):
            self._model = AutoModelForImageTextToText.from_pretrained(
                settings.path,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
            ).eval()

    async def judge(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        """One verdict per group, in order; a group whose picture cannot be read is dropped as `judge_failed`."""
        # The forwards run in a thread: the worker goes on answering its other callers.
        return await asyncio.to_thread(self._judge_groups, groups)

    def _judge_groups(self, groups: Sequence[RolloutGroup]) -> list[Verdict | Dropped]:
        verdicts: list[Verdict | Dropped] = []
        for group in groups:
            try:
                verdict = self._judge_group(group)
                verdicts.append(verdict)
            except JudgeError as error:
                detail = f"judge {self.name}: {error}"
                verdicts.append(Dropped(group.id, "judge_failed", detail))
        return verdicts

    def _judge_group(self, group: RolloutGroup) -> Verdict:
        """Scores of at most 0, and notes that name what was denied."""
        claims_by_completion: list[Counter[str]] = []
        all_claims: set[str] = set()
        for completion in group.completions:
            claims = self._language.claims_of(completion.text)
            claims_by_completion.append(Counter(claims))
            all_claims.update(claims)
        # A forward per question is what judging costs: no claim is asked about twice.
        denied: set[str] = set()
        for claim in sorted(all_claims):
            if not self.sees(group.prompt, claim):
                denied.add(claim)
        scores: list[float] = []
        notes: list[str] = []
        claimed = zip(group.completions, claims_by_completion, strict=True)
        for completion, counts in claimed:
            faults = self._faults(completion, counts, denied)
            note = "; ".join(faults)
            # Not -len(faults): no doubt scores 0.0, not -0.0.
            scores.append(0.0 - len(faults))
            notes.append(note or "no doubt")
        return Verdict(tuple(scores), tuple(notes))

    @torch.no_grad()
    def sees(self, prompt: Prompt, claim: str) -> bool:
        """Whether "yes" is a likelier answer than "no" to the question about `claim`, by their first tokens.

        Raises:
            JudgeError: the prompt's images cannot be read, or do not fit the model.
        """
        image_parts = [Part("image")] * len(prompt.images)
        text_part = Part("text", self._language.question_of(claim))
        message = Message("user", (*image_parts, text_part))
        question = replace(prompt, messages=(message,))
        try:
            encoded = self._encoder.encode_prompt(question)
        except Refused as error:
            raise JudgeError(str(error)) from error
        input_ids = torch.tensor([encoded.token_ids])
        outputs = self._model(input_ids=input_ids, **encoded.model_inputs)
        # (vocabulary,): what may follow the question.
        next_token_logits = outputs.logits[0, -1]
        yes, no = self._answer_tokens
        return bool(next_token_logits[yes] > next_token_logits[no])

    @cached_property
    def _answer_tokens(self) -> tuple[int, int]:
        """The first tokens of the answers yes and no."""
        yes = self._encoder.encode_response(self._language.yes)[0]
        no = self._encoder.encode_response(self._language.no)[0]
        assert yes != no, "the model's answers must differ in their first token"
        return yes, no

    def _faults(
        self, completion: Completion, claims: Counter[str], denied: set[str]
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
