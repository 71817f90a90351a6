"""End marks that stand at the end of answers as text: what is left when a model's output was decoded with its tokens.

An import knows no tokenizer, so it takes the marks of the well-known ones. `common.chat` does the same with the marks
of the policy at hand.
"""

from __future__ import annotations

from collections.abc import Iterable

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
