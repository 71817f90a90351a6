"""End marks that stand at the end of answers as text: what is left when a model's output was decoded with its tokens.

An import knows no tokenizer, so it takes the marks of the well-known ones. `common.chat` does the same with the marks
of the policy at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from common.records import PreferencePair, Prompt
from common.sources import WITH_ADVANTAGES

END_MARKS = (
    "</s>",
    "<eos>",
    "<pad>",
    "[PAD]",
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_sentence|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|end|>",
    "<|eos|>",
    "<end_of_turn>",
    "<turn|>",
    "<end_of_utterance>",
    "<|endofturn|>",
    "<|end_of_turn|>",
    "<｜end▁of▁sentence｜>",
)
"""Ends of turns and padding of LLaVA, Qwen, Llama 3, Phi, Gemma, Idefics, InternVL, DeepSeek and their like."""


def without_end_mark(text: str, marks: Iterable[str] = END_MARKS) -> str:
    """The text without the marks at its end, and without the white space around them; other texts stay as they are."""
    marks = tuple(marks)
    stripped = text
    while True:
        end = stripped.rstrip()
        mark = next((mark for mark in marks if mark and end.endswith(mark)), None)
        if mark is None:
            break
        stripped = end.removesuffix(mark).rstrip()
    return stripped


def without_end_marks(
    prompts: Iterable[Prompt], strip: Callable[[str], str] = without_end_mark
) -> tuple[list[Prompt], int]:
    """The prompts with references that end with their text, and how many references had a mark behind it."""
    stripped: list[Prompt] = []
    num_marks = 0
    for prompt in prompts:
        reference = None if prompt.reference is None else strip(prompt.reference)
        if reference != prompt.reference:
            prompt = replace(prompt, reference=reference)
            num_marks += 1
        stripped.append(prompt)
    return stripped, num_marks


def is_one_answer_twice(pair: PreferencePair) -> bool:
    """Whether the sides of a pair say the same: there is nothing to prefer. White space and end marks do not count."""
    # With advantages each side is trained on for itself, so they may be equal.
    if pair.source in WITH_ADVANTAGES:
        return False
    if pair.chosen.token_ids != pair.rejected.token_ids:
        return False
    chosen, rejected = pair.chosen.text, pair.rejected.text
    return without_end_mark(chosen).strip() == without_end_mark(rejected).strip()
