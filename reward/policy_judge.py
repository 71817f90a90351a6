"""A judge that sees: a vision-language model is asked yes/no about every object that a caption claims.

    "There is a red circle at the top. There is a blue star." -> "Is there a circle in the image?" "Is there a star …?"

The score is minus the number of claims it denies (RLAIF-V's divide-and-conquer rule), a repeated claim and a cut-off
caption counting as one more each. It never looks at the truth, so it is as weak as its model is: it does not check
colours or places, and does not miss what is left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cached_property

import torch
from transformers import AutoModelForImageTextToText

from common import config
from common.chat import ChatEncoder
from common.errors import Refused
from common.loading import readable
from common.protocols import JudgeError
from common.records import Completion, Message, Part, Prompt, RolloutGroup, Verdict
from common.shapes.language import parse_caption
from common.shapes.questions import answer_text, ask


class PolicyJudge:
    """Scores captions by the answers of the model in `settings.path`; raises JudgeError for a group it cannot see.

    Raises:
        UserError: there is no model that can be loaded.
    """

    name = "policy"

    def __init__(self, settings: config.PolicyJudge) -> None:
        self._encoder = ChatEncoder(settings.path, settings.max_length)
        with readable(
            settings.path, "reward.judge.path", "an architecture and weights"
        ):
            self._model = AutoModelForImageTextToText.from_pretrained(
                settings.path,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
            ).eval()

    def judge(self, group: RolloutGroup) -> Verdict:
        """One score per completion, at most 0; the notes name what was denied."""
        counts = [
            Counter(mention.shape for mention in parse_caption(c.text))
            for c in group.completions
        ]
        claimed = sorted(set().union(*counts))
        denied = {shape for shape in claimed if not self.sees(group.prompt, shape)}
        found = [
            self._faults(c, n, denied)
            for c, n in zip(group.completions, counts, strict=True)
        ]
        return Verdict(
            tuple(0.0 - len(faults) for faults in found),
            tuple("; ".join(faults) or "no doubt" for faults in found),
        )

    @torch.no_grad()
    def sees(self, prompt: Prompt, shape: str) -> bool:
        """Whether "Yes." is a likelier answer than "No." to the question for `shape`, by their first tokens."""
        question = (
            Message(
                "user",
                (*(Part("image") for _ in prompt.images), Part("text", ask(shape))),
            ),
        )
        try:
            encoded = self._encoder.encode_prompt(replace(prompt, messages=question))
        except Refused as error:
            raise JudgeError(str(error)) from error
        logits = self._model(
            input_ids=torch.tensor([encoded.token_ids]), **encoded.model_inputs
        ).logits[0, -1]
        yes, no = self._answers
        return bool(logits[yes] > logits[no])

    @cached_property
    def _answers(self) -> tuple[int, int]:
        yes, no = (
            self._encoder.encode_response(answer_text(answer))[0]
            for answer in ("yes", "no")
        )
        assert yes != no, "the model's answers must differ in their first token"
        return yes, no

    def _faults(
        self, completion: Completion, counts: Counter[str], denied: set[str]
    ) -> list[str]:
        faults = [f"denied {shape}" for shape in counts if shape in denied]
        faults += [
            f"repeated {shape}"
            for shape, number in counts.items()
            for _ in range(number - 1)
        ]
        if not counts:
            faults.append("names no object")
        if completion.finish_reason == "length":
            faults.append("cut off")
        return faults
